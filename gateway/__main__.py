"""`python -m gateway` is `esp-gateway`."""

from gateway.cli import main

raise SystemExit(main())
