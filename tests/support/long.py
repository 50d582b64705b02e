"""Whether there is time for all of it: ``KBCTL_TESTS=long``, as ``.ci/run`` says for tests that ask here."""

import os

LONG = os.environ.get("KBCTL_TESTS") == "long"
