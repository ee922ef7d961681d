"""`python -m ingestd.cli`, where the script is not on the PATH."""

from ingestd.cli import main

main()
