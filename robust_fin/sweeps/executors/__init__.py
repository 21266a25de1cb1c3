"""Where the jobs of a sweep run; each is a module with one class, named by conf/executor."""
