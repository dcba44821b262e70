from pathlib import Path

from pyarrow import Table

def read_table(source: Path, *, memory_map: bool = False) -> Table: ...
