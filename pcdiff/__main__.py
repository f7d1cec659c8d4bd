"""`python -m pcdiff`: the command line."""

from pcdiff.cli.app import main

if __name__ == "__main__":
    main()
