"""Download a model from the Hugging Face hub, verify it, and explain errors in one line."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import locations
from ..errors import BadInput
from ..progress import Bar
from .local import (
    UNWANTED_FILES,
    WANTED_FILES,
    cache_folder,
    chosen_revision,
    faults,
    fetch_command,
    model_folder,
    read_json,
    snapshot_folder,
)

# Seconds between attempts when a connection breaks: eight minutes, longer than a router restarts.
WAITS = (1, 2, 5, 10, 30, 60, 120, 240)
# By name, because huggingface_hub has changed its HTTP library before and may do so again.
UNREACHABLE = {
    *("ReadError", "RemoteProtocolError", "ReadTimeout", "ConnectTimeout"),
    *("ConnectError", "LocalEntryNotFoundError"),
}


class Unreachable(BadInput):
    """The hub cannot be reached."""


def fetch(model: str, revision: str) -> Path:
    """Return the folder of a model's snapshot; download what the cache lacks.

    Finished files are never downloaded again, and a commit that was verified before needs no hub.
    If the process is interrupted, the one file that it was downloading begins anew the next time
    (huggingface_hub cannot resume it). If the connection breaks, the download waits and goes on,
    for up to eight minutes. Raises BadInput when the hub refuses or cannot be reached, or when the
    disk is too small.
    """
    from huggingface_hub import constants, errors, snapshot_download

    revision = chosen_revision(model, revision)
    folder = snapshot_folder(model, revision)
    if folder and folder.name == revision and is_verified(model, folder):
        return folder  # a commit does not change, so the hub need not be asked
    wanted = {
        "repo_id": model,
        "revision": revision,
        "allow_patterns": WANTED_FILES,
        "ignore_patterns": UNWANTED_FILES,
    }
    with worded_errors(model, revision):
        if not constants.is_offline_mode():
            remove_orphans(model)
            # Without a network a dry run fails; the call below then uses what is in the cache.
            missing = []
            with suppress(errors.DryRunError):
                files = snapshot_download(**wanted, dry_run=True, tqdm_class=_Silent)
                missing = [file for file in files if file.will_download]
            _check_disk(model, sum(file.file_size or 0 for file in missing))
            _fetch_in_turn(model, missing)
        return Path(snapshot_download(**wanted, tqdm_class=_Silent))


def refuse_faults(model: str, folder: Path) -> None:
    """Raise BadInput when files of a model are missing or truncated.

    Of weights only the headers are read.
    """
    if found := faults(folder):
        todo = "" if Path(model).is_dir() else f"; to repair it: {fetch_command(model)}"
        raise BadInput(f"MODEL = {model!r}: {'; '.join(found)}{todo}")


def _fetch_in_turn(model: str, files: Sequence[Any]) -> None:
    """Download files one after the other, with one bar over the bytes of all of them.

    In this thread, so that Ctrl-C ends it at once, and so that an interruption costs one file.
    files: huggingface_hub's answers to a dry run.
    """
    from huggingface_hub import hf_hub_download

    total = sum(file.file_size or 0 for file in files)
    options = {"unit": "B", "unit_scale": True, "desc": "fetching", "disable": not files}
    with Bar(total=total, **options) as bar:
        received = 0

        class Counted(_Silent):
            """A bar of huggingface_hub's, counted in ours."""

            def update(self, n: float | None = 1) -> None:
                nonlocal received
                received += n or 0
                bar.update(n)

            def update_transfer(self, *_: Any) -> None:
                """Count nothing: these bytes are told a second time when they are on the disk."""

        before = 0
        for file in files:

            def download(file: Any = file, before: int = before) -> None:
                bar.n = before
                name, commit = file.filename, file.commit_hash
                hf_hub_download(model, name, revision=commit, tqdm_class=Counted)

            _patiently(download, lambda: received)
            before += file.file_size or 0


class _Silent(tqdm):
    """A progress bar that shows nothing."""

    def __init__(self, *args: Any, **options: Any):
        options.pop("name", None)  # some versions of huggingface_hub name their bars
        super().__init__(*args, **{**options, "disable": True})


def _patiently(download: Callable[[], None], received: Callable[[], float]) -> None:
    """Repeat a download whose connection breaks, after longer and longer waits if nothing arrives.

    received: returns the bytes so far.
    """
    waits, before = iter(WAITS), received()
    while True:
        try:
            return download()
        except Exception as error:
            if not {type(cause).__name__ for cause in _causes(error)} & UNREACHABLE:
                raise
            if received() > before:
                waits, before = iter(WAITS), received()
            if (wait := next(waits, None)) is None:
                raise
            print(f"The connection broke; trying again in {wait} s", flush=True)
            time.sleep(wait)


def verify(model: str, folder: Path) -> list[str]:
    """Compare the hashes of a snapshot's files with the hub's; delete and return wrong files.

    SHA-256 for large files, git's SHA-1 for small ones. Files that passed before, and have the size
    and the date of then, are not read again. Raises BadInput when the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    if is_verified(model, folder):
        return []
    with worded_errors(model, folder.name):
        compared = HfApi().verify_repo_checksums(model, revision=folder.name)
    wrong = [mismatch["path"] for mismatch in compared.mismatches]
    for name in wrong:
        path = folder / name
        path.resolve().unlink()  # the blob that the snapshot links to
        path.unlink(missing_ok=True)
    if not wrong:
        passed = _verified(model, folder)
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.write_text(json.dumps(_dates(folder)))
    return wrong


def is_verified(model: str, folder: Path) -> bool:
    """Whether a snapshot was complete and had the hub's hashes, and is as it was then."""
    return read_json(_verified(model, folder)) == _dates(folder)


def _verified(model: str, folder: Path) -> Path:
    return locations.cache_folder() / "verified" / f"{model_folder(model).name}-{folder.name}"


def _dates(folder: Path) -> dict[str, list[int]]:
    return {p.name: [p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(folder.iterdir())}


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
    except Exception as error:
        known = isinstance(error, OSError | ValueError | errors.HfHubHTTPError)
        if not known and type(error).__name__ not in UNREACHABLE:
            raise
        told = f"MODEL = {model!r} (revision {revision}): {_worded(error, model)}"
        unreachable = {type(cause).__name__ for cause in _causes(error)} & UNREACHABLE
        raise (Unreachable if unreachable else BadInput)(told) from None
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
