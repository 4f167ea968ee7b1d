"""HTTP on unwait's loop. Its modules need aiohttp, which the extra `unwait[web]` installs."""
