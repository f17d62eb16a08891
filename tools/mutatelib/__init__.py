"""The mutation tests behind tools/mutate: wrong lines, kept beside the source, that the tests must notice."""
