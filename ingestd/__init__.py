"""ingestd: e-voting transaction exports into SQL tables, every line accounted for."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ingestd")
except PackageNotFoundError:  # imported from a checkout that was never installed
    __version__ = "0+unknown"
