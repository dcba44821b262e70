"""Buckets: objects in S3, or in what speaks as S3 does, by obstore.

Credentials, region and endpoint are the usual ones of AWS tools, from the environment
(``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...), a profile of the machine or its role.
"""

import errno
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mezzotint.errors import InvalidRequest
from mezzotint.files import atomic_path
from mezzotint.observe import log
from mezzotint.service.objects import FolderObjects, ObjectStore

__all__ = ["BucketObjects", "open_objects"]

_CONNECT_S, _ANSWER_S, _RETRY_S = 5, 30, 20
_FULL = re.compile(
    r"\w*StorageFull|\w*QuotaExceeded|Insufficient(?:Capacity|Storage)|(?<=status code: )507\b"
)
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")


def open_objects(url: str, field: str) -> ObjectStore:
    """Return the objects at a place; nothing is read or written yet.

    Args:
        url: ``s3://bucket/prefix``, or a folder as a path or ``file://`` URL.
        field: The setting that holds it, for messages.

    Raises:
        InvalidRequest: If it is neither, or needs a package that is not installed.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        return FolderObjects(Path(rest if separator else url).expanduser())
    parts = urlsplit(url)
    if scheme != "s3" or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise InvalidRequest(
            f"{field} must be a folder or s3://bucket/prefix, got {scheme[:40]!r} and more; "
            "credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, "
            "AWS_ENDPOINT_URL)",
            field=field,
        )
    return BucketObjects(parts.netloc, parts.path.strip("/"), field)


class BucketObjects:
    """Objects below a prefix of a bucket.

    Args:
        bucket: Its name.
        prefix: In front of every name, "" for none.
        field: The setting that named it, for messages.

    Raises:
        InvalidRequest: If obstore is not installed, or the environment holds what it does
            not take.
    """

    def __init__(self, bucket: str, prefix: str, field: str) -> None:
        try:
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import S3Store
        except ImportError:
            raise InvalidRequest(
                f"{field}: s3 needs a package more; install it with: pip install 'mezzotint[s3]'",
                field=field,
            ) from None
        self._calls: Any = obstore
        self._error: type[Exception] = BaseError
        self._where = f"s3://{bucket}"
        try:
            self._store: Any = S3Store(
                bucket,
                prefix=prefix or None,
                client_options={
                    "allow_http": True,  # an endpoint says whether it has a certificate
                    "connect_timeout": timedelta(seconds=_CONNECT_S),
                    "timeout": timedelta(seconds=_ANSWER_S),
                },
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=_RETRY_S)},
            )
        except BaseError as error:
            raise InvalidRequest(f"{field}: {_line(error)}", field=field) from None

    def get(self, name: str) -> bytes | None:
        """Return an object, None if there is none."""
        try:
            return bytes(self._calls.get(self._store, name).bytes())
        except FileNotFoundError:
            return None
        except self._error as error:
            raise self._away("read", error) from None

    def put(self, name: str, data: bytes) -> None:
        """Keep an object, whole or not at all."""
        try:
            self._calls.put(self._store, name, data)
        except (FileNotFoundError, self._error) as error:
            raise self._away("write", error) from None

    def get_file(self, name: str, path: Path) -> bool:
        """Copy an object into a file, piece by piece; False if there is none."""
        try:
            with atomic_path(path) as partial, partial.open("wb") as file:
                for piece in self._calls.get(self._store, name).stream():
                    file.write(piece)
        except FileNotFoundError:
            return False
        except self._error as error:
            raise self._away("read", error) from None
        return True

    def put_file(self, name: str, path: Path) -> None:
        """Keep the content of a file, whole or not at all, in as many parts as it takes."""
        try:
            self._calls.put(self._store, name, path)
        except (FileNotFoundError, self._error) as error:
            raise self._away("write", error) from None

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with ``prefix``."""
        try:
            pages = self._calls.list(self._store, prefix)
            return sorted(str(found["path"]) for page in pages for found in page)
        except (FileNotFoundError, self._error) as error:
            raise self._away("list", error) from None

    def holds(self, name: str, digest: str) -> bool:
        """Tell nothing: writing an object again takes one call, as asking for it would."""
        return False

    def remove(self, name: str) -> None:
        """Forget an object, if there is one."""
        try:
            self._calls.delete(self._store, name)
        except FileNotFoundError:
            return
        except self._error as error:
            raise self._away("remove", error) from None

    def _away(self, what: str, error: Exception) -> OSError:
        line = _line(error)
        full = _FULL.search(line.rpartition(" - ")[2])  # before it stand address and milliseconds
        if full:
            log.error("bucket.full", bucket=self._where, reason=line)
            return OSError(errno.EDQUOT, f"the bucket is full ({full[0]})")
        return OSError(errno.EREMOTEIO, f"cannot {what} in {self._where}: {line}")


def _line(error: Exception) -> str:
    """Return what went wrong in one line: of the answer's markup only the code."""
    text = str(error).strip()
    code = _CODE.search(text)
    line = text.partition("\n")[0].partition(": <")[0][:300]
    return f"{line} ({code[1]})" if code else line
