"""The `lfi` command: parse, call the library, render. No logic lives here."""
