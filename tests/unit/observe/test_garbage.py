import subprocess
import sys

SCRIPT = """
import gc, weakref
from mezzotint.observe import garbage

class Node:
    pass

def ring():
    one, two = Node(), Node()
    one.other, two.other = two, one
    return one

kept = ring()
garbage.settle()
assert gc.get_freeze_count() == 0, "a user's own process"
gc.freeze()
garbage.collect()
assert gc.get_freeze_count() > 1000, "what a user has frozen stays so"
gc.unfreeze()
garbage.own_process()
garbage.settle()
frozen = gc.get_freeze_count()
assert frozen > 1000
assert len(gc.get_objects()) < frozen / 10, "a full collection looks at the rest"
gone = weakref.ref(kept)
kept = None
gc.collect()
assert gone() is not None
garbage.collect()
assert gone() is None
assert gc.get_freeze_count() > 1000
"""


def test_what_lives_is_left_out_of_collections_and_looked_at_where_a_model_goes():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=120)
