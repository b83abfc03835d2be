"""From requests to pictures on disk, in this process or in the warm one."""
