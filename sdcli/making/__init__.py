"""From requests to pictures on disk: in this process, or by the warm one."""
