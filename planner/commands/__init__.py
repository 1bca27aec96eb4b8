"""The command line's handlers: each reads its arguments, calls one plain function of typed values, and prints."""
