"""Download a model from the Hugging Face hub, verify it, and explain errors in one line."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import BadInput
from ..progress import Bar
from .local import (
    FETCH,
    UNWANTED_FILES,
    WANTED_FILES,
    cache_folder,
    chosen_revision,
    faults,
    model_folder,
)

ATTEMPTS = 5
# By name, because huggingface_hub has changed its HTTP library before and may do so again.
BROKEN = {"ReadError", "RemoteProtocolError", "ReadTimeout", "ConnectTimeout"}
UNREACHABLE = BROKEN | {"ConnectError", "LocalEntryNotFoundError"}


def fetch(model: str, revision: str) -> Path:
    """Return the folder of a model's snapshot; download what the cache lacks.

    An interrupted download resumes: at most 10 MB of a file are downloaded again, or the whole file
    if the connection was reset. Finished files are never downloaded again. Raises BadInput when the
    hub refuses or cannot be reached, or when the disk is too small.
    """
    from huggingface_hub import constants, errors, snapshot_download

    revision = chosen_revision(model, revision)
    wanted = {
        "repo_id": model,
        "revision": revision,
        "allow_patterns": WANTED_FILES,
        "ignore_patterns": UNWANTED_FILES,
    }
    with worded_errors(model, revision):
        bars = _Silent
        if not constants.is_offline_mode():
            remove_orphans(model)
            # Without a network a dry run fails; the call below then uses what is in the cache.
            with suppress(errors.DryRunError):
                files = snapshot_download(**wanted, dry_run=True, tqdm_class=_Silent)
                missing = [file.file_size or 0 for file in files if file.will_download]
                _check_disk(model, sum(missing))
                bars = _Fetching if missing else _Silent
        return Path(_patiently(lambda: snapshot_download(**wanted, tqdm_class=bars)))


def refuse_faults(model: str, folder: Path) -> None:
    """Raise BadInput when files of a model are missing or truncated.

    Of weights only the headers are read.
    """
    if found := faults(folder):
        todo = "" if Path(model).is_dir() else f"; to repair it: {FETCH}"
        raise BadInput(f"MODEL = {model!r}: {'; '.join(found)}{todo}")


class _Fetching(Bar):
    """Show only one of huggingface_hub's three bars: the one that counts the bytes on disk."""

    def __init__(self, *args: Any, desc: str = "", **options: Any):
        options.pop("name", None)  # some versions name their bars
        shown = options.get("unit") == "B" and desc != "Downloading bytes"
        options |= {"bar_format": None, "desc": "fetching", "disable": not shown}
        super().__init__(*args, **options)

    def set_description(self, *args: Any, **options: Any) -> None:
        """Keep our own description; huggingface_hub sets its own when the download is complete."""
        self.refresh()


class _Silent(tqdm):
    """A progress bar that shows nothing."""

    def __init__(self, *args: Any, **options: Any):
        options.pop("name", None)
        super().__init__(*args, **{**options, "disable": True})


def _patiently(download: Callable[[], str]) -> str:
    """Retry when a connection breaks; huggingface_hub itself resumes after other interruptions."""
    for _ in range(ATTEMPTS - 1):
        try:
            return download()
        except Exception as error:
            if not {type(cause).__name__ for cause in _causes(error)} & BROKEN:
                raise
            print("The connection broke; resuming", flush=True)
    return download()


def verify(model: str, folder: Path) -> list[str]:
    """Compare the hashes of a snapshot's files with the hub's; delete and return wrong files.

    SHA-256 for large files, git's SHA-1 for small ones. Raises BadInput when the hub cannot be
    reached.
    """
    from huggingface_hub import HfApi

    with worded_errors(model, folder.name):
        compared = HfApi().verify_repo_checksums(model, revision=folder.name)
    wrong = [mismatch["path"] for mismatch in compared.mismatches]
    for name in wrong:
        path = folder / name
        path.resolve().unlink()  # the blob that the snapshot links to
        path.unlink(missing_ok=True)
    return wrong


def remove_orphans(model: str) -> None:
    """Delete partial files that killed downloads of this model have left behind.

    huggingface_hub restarts such a file under another name and would never delete the old one. A
    file whose lock is held by another process is being downloaded right now, so it stays.
    """
    from filelock import FileLock, Timeout

    folder = model_folder(model)
    for path in folder.glob("blobs/*.incomplete"):
        lock = cache_folder() / ".locks" / folder.name / f"{path.name.split('.')[0]}.lock"
        try:
            with FileLock(lock, timeout=0):
                path.unlink()
        except (OSError, Timeout):
            continue


def _check_disk(model: str, needed: int) -> None:
    place = cache_folder()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise BadInput(
            f"MODEL = {model!r}: {needed / 1e9:.1f} GB still to download, but only "
            f"{free / 1e9:.1f} GB are free in {place}; make room, or set HF_HOME to another disk"
        )


@contextmanager
def worded_errors(model: str, revision: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a BadInput: one line that says what to do.

    Its own lines about retries are left out: without a network there are a dozen.
    """
    from huggingface_hub import errors

    retries = logging.getLogger("huggingface_hub.utils._http")
    level = retries.level
    retries.setLevel(logging.ERROR)
    try:
        yield
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        told = f"MODEL = {model!r} (revision {revision}): {_worded(error, model)}"
        raise BadInput(told) from None
    finally:
        retries.setLevel(level)


def _worded(error: Exception, model: str) -> str:
    from huggingface_hub import constants, errors, get_token

    causes = list(_causes(error))
    names = {type(cause).__name__ for cause in causes}
    codes = {getattr(getattr(cause, "response", None), "status_code", None) for cause in causes}
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes) or 403 in codes:
        token = "the HF_TOKEN given has no access" if get_token() else "an HF_TOKEN is needed"
        page = f"{constants.ENDPOINT}/{model}"
        return f"the hub gives it only to those who accepted its terms: {token}; accept at {page}"
    if any(isinstance(cause, errors.RevisionNotFoundError) for cause in causes):
        return "it has no such revision; allowed: a branch, tag or commit of this model"
    if 401 in codes and get_token():
        return "the hub does not accept the HF_TOKEN given; make a new one or remove it"
    if any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes) or 401 in codes:
        return (
            "it is not a folder here, and the hub has no such model; private ones need an HF_TOKEN"
        )
    if 429 in codes:
        return "the hub asks to wait (429, too many requests); try again in some minutes"
    if broken := [code for code in codes if code and code >= 500]:
        return (
            f"the hub has a fault of its own ({broken[0]}); try again later: what is here is kept"
        )
    if "ProxyError" in names:
        return "the proxy does not answer; see HTTPS_PROXY and HTTP_PROXY in the environment"
    if constants.is_offline_mode():
        return (
            f"it is not, or not wholly, in {cache_folder()}, and HF_HUB_OFFLINE forbids to fetch it"
        )
    numbers = {getattr(cause, "errno", None) for cause in causes}
    if numbers & {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return f"the disk is full in {cache_folder()}; make room, or set HF_HOME to another disk"
    if numbers & {errno.EACCES, errno.EROFS, errno.EPERM}:
        return f"{cache_folder()} cannot be written; set HF_HOME to a folder that can"
    if names & UNREACHABLE:
        return f"cannot reach {constants.ENDPOINT}; check the network (and HTTPS_PROXY)"
    line = next((part for part in str(error).splitlines() if part.strip()), type(error).__name__)
    return f"{type(error).__name__}: {line}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def offline() -> bool:
    """Whether huggingface_hub may not use the network (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return constants.is_offline_mode()
