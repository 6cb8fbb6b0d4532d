"""The protocols that plugins implement."""
