"""`python -m gateway.simulator 'sim://esp32?dir=/some/folder'`: one simulated board."""

import sys

from gateway.simulator.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
