"""Every file name of the format, once (docs/format.md, "Layout"). Pure: nothing here touches a disk."""

from __future__ import annotations

from pathlib import Path

FORMAT = 1


class SpoolPaths:
    """The names below a spool's root."""

    FOLDERS = ("tmp", "drop", "rejected", "corrupt", "jobs", "new", "queue", "active", "journal", "sites", "locks", "archive")

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spool_json = root / "spool.json"
        self.ini = root / "spool.ini"
        self.tokens = root / "tokens.json"
        self.users = root / "users.json"
        self.controls = root / "controls.json"
        self.tmp = root / "tmp"
        self.drop = root / "drop"
        self.rejected = root / "rejected"
        self.corrupt = root / "corrupt"
        self.jobs = root / "jobs"
        self.new = root / "new"
        self.queue = root / "queue"
        self.active = root / "active"
        self.journal = root / "journal"
        self.sites = root / "sites"
        self.locks = root / "locks"
        self.archive = root / "archive"

    def job(self, job_id: str) -> JobPaths:
        """The folder of an accepted job."""
        return JobPaths(self.jobs / job_id)

    def lock(self, job_id: str) -> Path:
        """The lock file that guards this job: shared with the other jobs whose id ends in the same byte."""
        return self.locks / job_id[-2:]

    def accepting(self, job_id: str) -> Path:
        """Where a drop is kept while it is checked and hashed: holds `lock` and `job/`."""
        return self.tmp / f"accept.{job_id}"

    def queue_of(self, site: str, user: str) -> Path:
        """The folder whose entries are what waits for `site` from `user`."""
        return self.queue / site / user

    def site(self, site: str) -> Path:
        """The last contact of a site's agents (derived)."""
        return self.sites / f"{site}.json"

    def heads(self, site: str) -> Path:
        """The heads of its agents' audit logs that a site has told."""
        return self.sites / f"{site}.audit.jsonl"


class JobPaths:
    """The names inside one job's folder: at MInt, at the agent and at an SSH site alike."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = folder / "job.json"
        self.signature = folder / "job.json.sig"
        self.state = folder / "state.json"
        self.history = folder / "history.jsonl"
        self.result = folder / "result.json"
        self.inputs = folder / "in"
        self.work = folder / "work"
        self.out = folder / "out"
        self.log = folder / "log"
        self.stdout = folder / "log" / "stdout.txt"
        self.stderr = folder / "log" / "stderr.txt"
        self.run = folder / "run"
        self.attempts = folder / "attempts"
        self.incoming = folder / "incoming"
        self.late = folder / "late"
        self.reason = folder / "reason.json"

    def attempt(self, number: int) -> Path:
        """What attempt `number` left, after a requeue."""
        return self.attempts / str(number)

    def incoming_of(self, run_id: str) -> Path:
        """Results of one run on their way in."""
        return self.incoming / run_id

    # What one attempt produces, and a requeue therefore moves to attempts/N/.
    OF_AN_ATTEMPT = ("work", "out", "log", "run", "incoming", "result.json")
