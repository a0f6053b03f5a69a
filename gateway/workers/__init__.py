"""Several processes on one data port: how they are started, kept running, and how they speak to each other.

    gitlab-gateway serve ── Supervisor      binds both ports, restarts workers that die; no request passes through it
          │ the channel: a socket pair, at the worker's end its standard input
          ├── worker 0 ─┐
          ├── worker 1 ─┼── each a whole gateway (gateway.app.worker_process), all accepting at the same two sockets
          └── worker n ─┘

What the workers do is up to the application; nothing here knows of HTTP.
"""
