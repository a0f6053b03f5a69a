"""Several processes on one data port: who starts them, who keeps them, and how they speak to each other.

    gitlab-gateway serve ── Supervisor      binds both ports, starts again who dies; no request passes through it
          │ the line: a socket pair, at the worker's end its standard input
          ├── worker 0 ─┐
          ├── worker 1 ─┼── each a whole gateway (gateway.app.working), all accepting at the same two sockets
          └── worker n ─┘

What the workers do is the application's; nothing here knows of HTTP.
"""
