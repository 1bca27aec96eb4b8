"""``python -m planner.paper`` writes docs/paper-vs-physics.md."""

import sys

from planner.paper.statements import main

sys.exit(main(sys.argv[1:]))
