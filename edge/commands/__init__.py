"""Commands of the device: each module has `register(subparsers)`, whose parser sets the default `handler`.

`handler(args)` returns the exit code or None for 0, and raises RustEdgeError for what the user can mend.
"""
