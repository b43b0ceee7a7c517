"""The version of the library, where its own modules can read it."""

VERSION = "0.1.0"
