from collections.abc import Sequence

class HfApi:
    def list_repo_files(self, repo_id: str, *, revision: str | None = None) -> list[str]: ...

def hf_hub_download(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> str: ...
def snapshot_download(
    repo_id: str,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    allow_patterns: Sequence[str] | None = None,
) -> str: ...
