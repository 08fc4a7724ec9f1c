"""Scripts that draw the pictures of ``docs/images``; the pictures are committed, the scripts are not published."""
