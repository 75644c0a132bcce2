"""``python -m snrecon`` is the command ``snrecon``."""

from snrecon.cli.main import main

raise SystemExit(main())
