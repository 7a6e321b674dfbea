"""What a config may call a thing after which files are named."""

import re

FILE_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]*")
