"""What GitLab sees instead of the caller's credential."""
