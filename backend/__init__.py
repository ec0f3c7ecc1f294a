"""The service that Label Studio calls, and the command line."""
