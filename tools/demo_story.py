"""The story that tools/demo tells: a job goes out, is computed, comes back; the confidential curve stays where it is.

Nothing here is staged: the programs are the real ones, the configuration is etc/examples/ with its paths filled in, the
job goes by program A (module.sh) to programs C and D, and each time that is shown was read from the job's own records.
Started by tools/demo, which has prepared an interpreter with the packages and a PATH with the solver.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import http.client
import json
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Callable

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "etc" / "examples"
COMMON = EXAMPLES / "common"
sys.path.insert(0, str(COMMON))
sys.dont_write_bytecode = True

import picture  # noqa: E402  the example's own modules, as its users have them
import plate  # noqa: E402
import traces  # noqa: E402

YOUNG_MPA, POISSON, YIELD_MPA = "206000", "0.3", "235"
JOB_LIMIT_S = 180.0


class DemoError(Exception):
    """Something is not as it must be; the two arguments say what: English, Japanese."""


class Teller:
    """Prints in the one language or the other, with the seconds since the start."""

    def __init__(self, japanese: bool) -> None:
        self._japanese = japanese
        self._start = time.monotonic()

    def pick(self, english: str, japanese: str) -> str:
        return japanese if self._japanese else english

    def head(self, english: str, japanese: str) -> None:
        print(f"\n[{time.monotonic() - self._start:5.1f} s] {self.pick(english, japanese)}", flush=True)

    def line(self, english: str, japanese: str) -> None:
        print(f"    {self.pick(english, japanese)}", flush=True)

    def text(self, text: str) -> None:
        print("\n".join(f"    {line}" for line in text.splitlines()), flush=True)

    def table(self, rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
        """Columns side by side; those in `right` end at the same place, as numbers should."""
        widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            blanks = [" " * (width - _width(cell)) for cell, width in zip(row, widths)]
            cells = [blank + cell if i in right else cell + blank for i, (cell, blank) in enumerate(zip(row, blanks))]
            print(("    " + "  ".join(cells)).rstrip(), flush=True)


def _width(text: str) -> int:
    """Columns on a terminal: a Japanese character takes two."""
    return sum(2 if ord(char) > 0x2E7F else 1 for char in text)


# ---- the two sides ---------------------------------------------------------------------------------------------------


class Stage:
    """All files of one run. `mint` is what MInt has, `site` what the company has; the two meet in the network only."""

    def __init__(self, top: Path, bundled_solver: bool) -> None:
        self.top = top
        self.user = _user_name()
        self.mint, self.site = top / "mint", top / "site"
        self.spool, self.module = self.mint / "spool", self.mint / "module"
        self.base, self.programs = self.site / "work", self.site / "programs"
        for folder in (self.spool, self.module, self.base):
            folder.mkdir(parents=True, mode=0o700)
        self._install_at_site(bundled_solver)
        self.env = self._environment()
        self._running: list[subprocess.Popen[bytes]] = []

    @property
    def table(self) -> Path:
        """The confidential curve, in the site's own folder."""
        return self.programs / "confidential" / "hardening_curve.csv"

    def _install_at_site(self, bundled_solver: bool) -> None:
        shutil.copytree(COMMON, self.programs, ignore=shutil.ignore_patterns("__pycache__", "module.sh", "picture.py"))
        self.table.parent.chmod(0o700)
        lines = [f"PYTHON={shlex.quote(sys.executable)}", f"PATH={shlex.quote(os.environ['PATH'])}"]
        lines += ["CCX=none"] if bundled_solver else []
        (self.programs / "site.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SSH_"))}
        if not os.path.isdir(env.get("HOME", "")):
            home = self.top / "home"
            home.mkdir(mode=0o700)
            env["HOME"] = str(home)
        env["NO_PROXY"] = env["no_proxy"] = "127.0.0.1,localhost"
        return env

    def start(self, program: str, log: Path, config: Path) -> subprocess.Popen[bytes]:
        """One of the three programs."""
        return self.spawn([sys.executable, str(ROOT / program), "--config", str(config)], log)

    def spawn(
        self, argv: list[str], log: Path, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """In the background, with its output in `log`; ended by `close`."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd or log.parent, env=env or self.env,
                start_new_session=True,
            )  # fmt: skip
        self._running.append(process)
        return process

    def spoolctl(self, *arguments: str | Path) -> str:
        """Run tools/spoolctl on the spool; its output."""
        done = subprocess.run(
            [ROOT / "tools" / "spoolctl", "--spool", self.spool, *arguments], env=self.env, cwd=self.mint, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=60,
        )  # fmt: skip
        if done.returncode:
            words = f"spoolctl {' '.join(map(str, arguments))}: {done.stdout.strip()}"
            raise DemoError(words, words)
        return done.stdout

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        process.wait()
        self._running.remove(process)

    def ended(self, but: subprocess.Popen[bytes]) -> bool:
        """Whether any program in the background has ended that should not have."""
        return any(process.poll() is not None for process in self._running if process is not but)

    def close(self) -> None:
        """End what was started, and what that has left running: jobs have sessions of their own."""
        for process in reversed(self._running):
            if process.poll() is None:
                process.terminate()
        for process in self._running:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _kill_below(self.top)


def _kill_below(top: Path) -> None:
    for pid in _working_below(top):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise DemoError(
            f"uid {os.getuid()} has no entry in /etc/passwd", f"uid {os.getuid()} が /etc/passwd にありません"
        ) from None


def _working_below(top: Path) -> Iterator[int]:
    """Processes of this user whose current directory lies in `top`, a folder that only this demo knows."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            cwd = os.readlink(entry / "cwd")
            if cwd == str(top) or cwd.startswith(f"{top}/"):
                yield int(entry.name)


def fill(sample: Path, values: dict[str, str], separator: str = " = ") -> str:
    """A sample of etc/examples with these options set; each must be in the sample, so that the samples stay true."""
    lines, left = [], dict(values)
    for line in sample.read_text(encoding="utf-8").splitlines():
        name = line.strip().split(separator)[0]
        if name in values and not line.startswith("#"):
            left.pop(name, None)
            line = line[: len(line) - len(line.lstrip())] + name + separator + values[name]
        lines.append(line)
    if left:
        raise DemoError(f"{sample} has no {', '.join(left)}", f"{sample} に {', '.join(left)} がありません")
    return "\n".join(lines) + "\n"


def write_private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# ---- WebAPI mode -----------------------------------------------------------------------------------------------------


def start_webapi(stage: Stage, tell: Teller) -> str:
    """Server, token and agent; returns the site's name."""
    site, port = "example-webapi", free_port()
    ini = EXAMPLES / "webapi" / "spool.ini"
    settings = {"spool": str(stage.spool), "listen": f"127.0.0.1:{port}", "users": stage.user}
    config = write_private(stage.mint / "spool.ini", fill(ini, settings))
    log = stage.mint / "server.log"
    server = stage.start("spool_server.py", log, config)
    wait_for(lambda: answers(port), server, 20, f"127.0.0.1:{port}/health")
    where = f"127.0.0.1:{port}"
    tell.head(f"MInt: spool_server.py listens on {where}", f"MInt: spool_server.py が {where} で待ち受け")

    roles = ("--role", "agent", "--role", "submitter")
    added = stage.spoolctl("token", "add", "--user", stage.user, *roles, "--site", site)
    token = write_private(stage.site / "token", added.split()[-1] + "\n")
    ini = EXAMPLES / "webapi" / "agent.ini"
    settings = {
        "url": f"http://127.0.0.1:{port}",
        "token_file": str(token),
        "base": str(stage.base),
        "argv": f"{shlex.quote(str(stage.programs / 'program_c.sh'))} plate {{args}}",
    }
    config = write_private(stage.site / "agent.ini", fill(ini, settings))
    stage.start("spool_agent.py", stage.site / "agent.log", config)
    tell.head("Site: spool_agent.py polls; no port is open here",
              "外部計算機: spool_agent.py がポーリング開始 (開いたポートは無い)")  # fmt: skip
    return site


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# ---- SSH mode --------------------------------------------------------------------------------------------------------


def start_ssh(stage: Stage, tell: Teller) -> str:
    """An sshd as the site's, then the push; returns the site's name."""
    site, port = "example-ssh", free_port()
    keys = stage.mint / "ssh"
    keys.mkdir(mode=0o700)
    _make_key(stage, keys / "id_ed25519")
    _make_key(stage, stage.site / "host_key")
    host_key = " ".join((stage.site / "host_key.pub").read_text().split()[:2])
    known = write_private(keys / "known_hosts", f"[127.0.0.1]:{port} {host_key}\n")
    settings = {
        "HostName": "127.0.0.1",
        "Port": str(port),
        "User": stage.user,
        "IdentityFile": f'"{keys / "id_ed25519"}"',
        "UserKnownHostsFile": f'"{known}"',
    }
    ssh_config = write_private(keys / "ssh_config", fill(EXAMPLES / "ssh" / "ssh_config", settings, " "))
    _start_sshd(stage, port, keys, ssh_config)
    tell.head(f"Site: sshd listens on 127.0.0.1:{port}", f"外部計算機: sshd が 127.0.0.1:{port} で待ち受け")

    settings = {
        "spool": str(stage.spool),
        "ssh_config": str(ssh_config),
        "base": str(stage.base),
        "program": str(stage.programs / "program_c.sh"),
        "users": stage.user,
    }
    config = write_private(stage.mint / "spool.ini", fill(EXAMPLES / "ssh" / "spool.ini", settings))
    log = stage.mint / "push.log"
    push = stage.start("ssh_push.py", log, config)
    wait_for((stage.spool / "spool.json").exists, push, 20, "spool.json")
    tell.head("MInt: ssh_push.py watches the spool", "MInt: ssh_push.py がスプールを監視")
    return site


def _make_key(stage: Stage, path: Path) -> None:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)]
    subprocess.run(argv, env=stage.env, check=True)


def _start_sshd(stage: Stage, port: int, keys: Path, ssh_config: Path) -> None:
    """Without PAM, as an ordinary user must; a locked account (root's, in some images) gets in with PAM only."""
    sshd = shutil.which("sshd", path=os.environ["PATH"])
    if not sshd:
        raise DemoError("sshd is not installed", "sshd がありません")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    shutil.copy(keys / "id_ed25519.pub", stage.site / "authorized_keys")
    home = stage.site / "home"
    home.mkdir(mode=0o700)
    log = stage.site / "sshd.log"
    tried = ""
    for pam in ("no", "yes") if os.geteuid() == 0 else ("no",):
        config = write_private(stage.site / "sshd_config", f"""\
Port {port}
ListenAddress 127.0.0.1
HostKey "{stage.site / "host_key"}"
PidFile none
AuthorizedKeysFile "{stage.site / "authorized_keys"}"
UsePAM {pam}
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
SetEnv "HOME={home}"
""")  # fmt: skip
        process = stage.spawn([sshd, "-D", "-e", "-f", str(config)], log)
        wait_for(lambda: _accepts(port), process, 10, f"sshd 127.0.0.1:{port}")
        done = subprocess.run(
            ["ssh", "-F", ssh_config, "example-ssh", "rsync --version"], env=stage.env, check=False, timeout=60,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
            errors="replace",
        )  # fmt: skip
        if done.returncode == 0:
            return
        tried = done.stdout.strip()
        stage.stop(process)
    raise DemoError(f"no login by ssh: {tried}", f"sshで接続できません: {tried}")


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(2)
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_for(there: Callable[[], bool], process: subprocess.Popen[bytes], limit_s: float, what: str) -> None:
    """Until `there()`; DemoError when the process ends or the time is over."""
    deadline = time.monotonic() + limit_s
    while not there():
        if process.poll() is not None or time.monotonic() > deadline:
            raise DemoError(f"waited in vain for {what}", f"応答がありません: {what}")
        time.sleep(0.05)


# ---- the job ---------------------------------------------------------------------------------------------------------


def run_module(stage: Stage, site: str, mode: str, tell: Teller) -> Path:
    """Program A, as MInt's module runs it; returns the job's folder in the spool."""
    script = EXAMPLES / mode / "module.sh"
    given = f"module.sh {YOUNG_MPA} {POISSON} {YIELD_MPA}"
    tell.head(
        f"MInt: program A, {given}  (Young's modulus, Poisson's ratio, yield stress)",
        f"MInt: プログラム(A) {given}  (ヤング率、ポアソン比、降伏応力)",
    )
    env = {
        **stage.env, "SITE": site, "SPOOL": str(stage.spool), "PYTHON": sys.executable,
        "SPOOLCTL": str(ROOT / "tools" / "spoolctl"),
    }  # fmt: skip
    log = stage.mint / "module.log"
    process = stage.spawn([str(script), YOUNG_MPA, POISSON, YIELD_MPA], log, stage.module, env)
    deadline = time.monotonic() + JOB_LIMIT_S
    while process.poll() is None:
        if stage.ended(but=process) or time.monotonic() > deadline:
            raise DemoError("the job did not end, or a program did", "ジョブが終わらないか、プログラムが終了しました")
        time.sleep(0.05)
    code = process.returncode
    said = log.read_text(encoding="utf-8", errors="replace").split()
    if code != 0 or not said:
        raise DemoError(f"program A ended with {code}", f"プログラム(A)が {code} で終わりました")
    return stage.spool / "jobs" / said[-1]


def show_history(stage: Stage, job: Path, tell: Teller) -> None:
    """What happened when: history.jsonl says it, and for the two times at the site the runner's files there."""
    history = [json.loads(line) for line in (job / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    result = json.loads((job / "result.json").read_bytes())
    run = next(stage.base.rglob(f"{job.name}/run"))
    words = {
        "queued": ("accepted and queued", "受付、待ち行列へ"),
        "claimed": ("claimed by the site; inputs on their way", "外部計算機が引き取り、入力を転送"),
        "running": ("inputs fetched and verified; start permitted", "入力の受け取りと照合が完了、開始を許可"),
        "returning": ("results on their way", "結果を転送"),
        "completed": ("everything returned and verified", "結果がすべて返り、照合が完了"),
    }
    here, there = "MInt", tell.pick("site", "外部計算機")
    rows = [(_changed(job / "job.json"), "folder created", "ジョブのフォルダを作成", here)]
    rows += [(_instant(entry["at"]), *words.get(entry["to"], (entry["to"], entry["to"])), str(entry["by"]))
             for entry in history if entry["from"] != entry["to"]]  # fmt: skip
    rows += [(_changed(run / "pid"), "program C started", "プログラム(C)を開始", there),
             (_changed(run / "exit"), f"program C ended, exit {result['exit_code']}",
              f"プログラム(C)が終了、終了コード {result['exit_code']}", there)]  # fmt: skip
    rows.sort(key=lambda row: row[0])
    tell.head(f"The job's history  {job.name}", f"ジョブの履歴  {job.name}")
    tell.table([(f"+{(at - rows[0][0]).total_seconds():6.2f} s", tell.pick(english, japanese), by)
                for at, english, japanese, by in rows])  # fmt: skip


def _changed(path: Path) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.timezone.utc)


def _instant(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def show_folder(job: Path, tell: Teller) -> None:
    tell.head(f"ls -R {job}", f"ls -R {job}")
    files = sorted(path for path in job.rglob("*") if path.is_file())
    tell.table([(f"{path.stat().st_size:,}", str(path.relative_to(job))) for path in files], right=(0,))


def show_result(stage: Stage, svg: Path, tell: Teller) -> None:
    """The numbers and the picture, from what program A received."""
    result = picture.draw(stage.module / "plate.frd", svg)
    largest, node = result.largest_displacement()
    stress, where = result.largest_mises()
    node_word = tell.pick("node", "節点")
    tell.head("The result, as program A received it", "プログラム(A)が受け取った結果")
    tell.table([
        (tell.pick("solver", "ソルバー"), result.program, ""),
        (tell.pick("model", "モデル"), tell.pick(
            f"{len(result.elements)} elements, {len(result.nodes)} nodes",
            f"{len(result.elements)} 要素、{len(result.nodes)} 節点"), ""),
        (tell.pick("largest displacement", "最大変位"), f"{largest:.4f} mm", f"({node_word} {node})"),
        (tell.pick("largest von Mises stress", "最大相当応力"), f"{stress:.1f} MPa", f"({node_word} {where})"),
        (tell.pick("picture", "図"), str(svg), ""),
    ])  # fmt: skip
    if not stress > float(YIELD_MPA):
        raise DemoError("no yielding: the curve was not used", "降伏していません: 硬化曲線が使われていません")


# ---- the proof -------------------------------------------------------------------------------------------------------


def search(curve: traces.Curve, folder: Path) -> tuple[int, int, list[tuple[Path, traces.Traces]]]:
    """Files and bytes searched (names of files count, too), and which files hold what."""
    files, size, hits = 0, 0, []
    for path in sorted(folder.rglob("*")):
        content = b"" if path.is_dir() or path.is_symlink() or not path.is_file() else path.read_bytes()
        files, size = files + (not path.is_dir()), size + len(content)
        found = curve.search(content) + curve.search(os.fsencode(path.name))
        if found:
            hits.append((path, found))
    return files, size, hits


def prove(stage: Stage, tell: Teller) -> None:
    """Nothing of the curve at MInt; and the same search does find it where it is."""
    material = plate.Material(float(YOUNG_MPA), float(POISSON), float(YIELD_MPA))
    hardening = plate.read_hardening(stage.table)
    curve = traces.Curve(stage.table.read_text(encoding="utf-8"), material, hardening)
    rows = len(hardening) - 1
    tell.head(
        f"Where is the confidential curve? {rows} lines, as in the table and as in the deck, and all their numbers",
        f"秘匿の硬化曲線はどこにあるか。{rows} 行(表のまま、入力に入れた形の両方)と、その数値すべてを探す",
    )
    answers = [tell.pick("searched", "探した場所"), tell.pick("files", "ファイル数"), tell.pick("bytes", "バイト数"),
               tell.pick("lines found", "見つかった行"), tell.pick("numbers found", "見つかった数値")]  # fmt: skip
    table = [answers]
    places = ((tell.pick("spool at MInt", "MIntのスプール"), stage.spool, True),
              (tell.pick("all of MInt (logs, results)", "MInt側すべて(ログ、結果)"), stage.mint, True),
              (tell.pick("jobs' folders at the site", "外部計算機の作業場所"), stage.base, True),
              (tell.pick("the site's own folder", "サイト自身のフォルダ"), stage.programs, False))  # fmt: skip
    leaks: list[str] = []
    for name, folder, clean in places:
        files, size, hits = search(curve, folder)
        total = sum((found for _, found in hits), traces.Traces())
        table.append([name, f"{files:,}", f"{size:,}", str(total.lines), str(total.numbers)])
        if files == 0:
            raise DemoError(f"nothing to search in {folder}", f"{folder} に何もありません")
        leaks += [f"{path}: {found}" for path, found in hits] if clean else []
        if not clean and [path for path, found in hits if found.lines >= rows] != [stage.table]:
            raise DemoError("the search does not find the curve where it is", "探し方が曲線を見つけられません")
    deck = plate.deck(material, hardening).encode()
    seen = curve.search(deck)
    table.append([tell.pick("(the deck as the solver had it)", "(ソルバーに渡った入力)"), "1", f"{len(deck):,}",
                  str(seen.lines), str(seen.numbers)])  # fmt: skip
    tell.table(table, right=(1, 2, 3, 4))
    if leaks:
        raise DemoError("LEAK: " + "; ".join(leaks), "漏洩: " + "; ".join(leaks))
    if seen.lines < rows:
        raise DemoError("the search does not find the curve in the deck", "探し方が入力の中の曲線を見つけられません")
    tell.head(
        "PROVED: no line and no number of the confidential curve is at MInt; the same search finds it at the site.",
        "確認: 秘匿の硬化曲線は、一行も一つの数値もMIntにありません。同じ探し方で、サイトのフォルダでは見つかります。",
    )


# ---- from start to end -----------------------------------------------------------------------------------------------


def choose_picture(wanted: str | None) -> Path:
    if wanted:
        return Path(wanted).absolute()
    here = Path.cwd() / "demo-result.svg"
    if os.access(here if here.exists() else here.parent, os.W_OK):
        return here
    handle, name = tempfile.mkstemp(prefix="demo-result-", suffix=".svg")
    os.close(handle)
    return Path(name)


def tell_story(stage: Stage, options: argparse.Namespace, tell: Teller) -> None:
    mode = "ssh" if options.ssh else "webapi"
    tell.head(f"MInt is {stage.mint}, the company's computer is {stage.site}",
              f"MIntの役 {stage.mint}、外部計算機の役 {stage.site}")  # fmt: skip
    site = start_ssh(stage, tell) if options.ssh else start_webapi(stage, tell)
    job = run_module(stage, site, mode, tell)
    show_history(stage, job, tell)
    show_folder(job, tell)
    show_result(stage, choose_picture(options.picture), tell)
    prove(stage, tell)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/demo")
    for flag in ("--ssh", "--keep", "--no-install", "--bundled-solver", "--japanese"):
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--picture", metavar="FILE.svg")
    parser.add_argument("--remove", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell's background jobs have it ignored
    tell = Teller(options.japanese)
    top = Path(tempfile.mkdtemp(prefix="mint-spool-demo-"))
    stage = None
    try:
        stage = Stage(top, options.bundled_solver)
        tell_story(stage, options, tell)
        return 0
    except DemoError as error:
        print("tools/demo: " + tell.pick(*error.args), file=sys.stderr)
        for log in sorted(top.rglob("*.log")):
            print(f"--- {log}\n" + log.read_text(errors="replace")[-3000:], file=sys.stderr)
        return 1
    except OSError as error:
        print(f"tools/demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        clean_up(stage, top, options, tell)


def _remove(top: Path) -> None:
    """Remove the demo's folder; a job that was just starting may still have brought forth a process that writes there."""
    deadline = time.monotonic() + 15
    while top.exists() and time.monotonic() < deadline:
        _kill_below(top)
        shutil.rmtree(top, ignore_errors=True)
        if top.exists():
            time.sleep(0.1)


def _stop(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def clean_up(stage: Stage | None, top: Path, options: argparse.Namespace, tell: Teller) -> None:
    """A second Ctrl+C must not interrupt this."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if stage is not None:
        stage.close()
    if options.keep:
        tell.head(f"Kept: {top}", f"残したフォルダ: {top}")
    else:
        _remove(top)
    if options.remove:
        shutil.rmtree(options.remove, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
