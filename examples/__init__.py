"""Scripts to read, to run and to take from; the tests run each of them."""
