"""The store on other file systems: ``make test-filesystems``, and a short version in the suite."""
