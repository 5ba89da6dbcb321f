"""Third-party attacks, provers and pruners behind our contracts, one library a file."""
