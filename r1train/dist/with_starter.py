"""Makes the process that imports it end with its parent: for the fork server of dist/warm.py, which is not our main."""

from r1train.dist.parent import end_with_parent

end_with_parent()
