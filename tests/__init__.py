"""The tests, a package so that they share tests.support from wherever they are started."""
