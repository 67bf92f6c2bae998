"""The parts of `fngrad.fit`: when to look, what to feed, how to loop, to tell."""
