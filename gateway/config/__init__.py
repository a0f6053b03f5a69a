"""The configuration: YAML in, frozen values or every problem out. `docs/configuration.md` explains each key."""

from .load import EMBEDDED, Loaded, load
from .model import Config
from .problems import Problem, Severity
from .redact import redacted, rendered
from .schema import json_schema

__all__ = ["EMBEDDED", "Config", "Loaded", "Problem", "Severity", "json_schema", "load", "redacted", "rendered"]
