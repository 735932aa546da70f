"""From a case's files to arrays on the network's grid, and the cache of them that training reads."""
