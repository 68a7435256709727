"""What spoolctl says to people: one catalogue, English and Japanese, chosen by the locale.

Every value that is put into a message is escaped first, so that a hostile name, reason or path cannot reach the terminal as it
is. The help texts of the options are in `spool.ctl.helptexts`, what a check says in `spool.ctl.checktexts`. A test checks that
both languages are there for every id and take the same values.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from spool.ctl.checktexts import CHECK
from spool.ctl.helptexts import HELP
from spool.ctl.holdingtexts import HOLDING
from spool.manifest import printable

Catalogue = Mapping[str, tuple[str, str]]

_SAID: Catalogue = {
    # Submitting and waiting
    "handed_in": ("{id}  handed in", "{id}  投入しました"),
    "accepting_later": (
        "Waiting up to {seconds} s for the server or the push to accept it ...",
        "サーバーまたはpushが受け付けるのを最大{seconds}秒待っています...",
    ),
    "not_accepted_yet": (
        "Handed in, but nobody has accepted it within {seconds} s; it stays in drop/ until the server or the push runs",
        "投入しましたが、{seconds}秒以内に受け付けられませんでした。サーバーかpushが動くまでdrop/に残ります",
    ),
    "config_unusable": (
        "spool.ini cannot be used, so accepting is left to the server: {message}",
        "spool.iniが使えないため、受け付けはサーバーに任せます: {message}",
    ),
    "other_user": (
        "The job is {user}'s, not {wanted}'s: with --url the token decides",
        "ジョブのユーザーは{wanted}ではなく{user}です(--urlではトークンで決まります)",
    ),
    "upload_resume": (
        "The job stays registered; the same command with --id {id} goes on where it stopped",
        "ジョブは登録済みです。同じコマンドに --id {id} を付けると続きから送ります",
    ),
    "change": ("{at}  {source} -> {target}  {by}  {why}", "{at}  {source} → {target}  {by}  {why}"),
    "change_of": ("{id}  {at}  {source} -> {target}  {by}  {why}", "{id}  {at}  {source} → {target}  {by}  {why}"),
    "remark": ("{at}  {target}  {by}  {why}", "{at}  {target}  {by}  {why}"),
    "remark_of": ("{id}  {at}  {target}  {by}  {why}", "{id}  {at}  {target}  {by}  {why}"),
    "ended": ("{id}  {state}  {detail}", "{id}  {state}  {detail}"),
    "waiting": ("waiting: {detail}", "待っています: {detail}"),
    "wait_timeout": (
        "Not ended within {seconds} s: {ids}\n  The jobs go on. Wait again: spoolctl {where} wait {ids}",
        "{seconds}秒以内に終わりませんでした: {ids}\n  ジョブは続いています。再び待つ: spoolctl {where} wait {ids}",
    ),
    "interrupted": (
        "\nInterrupted; it goes on.\n  Wait again: spoolctl {where} wait {ids}\n  Cancel it:  spoolctl {where} cancel {ids}",
        "\n中断しました。ジョブは続きます。\n  再び待つ: spoolctl {where} wait {ids}\n  取り消す: spoolctl {where} cancel {ids}",
    ),
    "interrupted_plain": ("\nInterrupted", "\n中断しました"),
    "retrying": ("{what}: {message}; trying again in {seconds} s", "{what}: {message} {seconds}秒後に再試行します"),
    "copying": ("copying {name}", "コピー中 {name}"),
    "sending": ("sending {name}", "送信中 {name}"),
    "hashing": ("hashing {name}", "照合値を計算中 {name}"),
    "fetching": ("fetching {name}", "受信中 {name}"),
    # Fetching and logs
    "fetched": (
        "{count} files ({bytes} bytes) verified, in {folder}",
        "{count}ファイル({bytes}バイト)を照合して{folder}に置きました",
    ),
    "nothing_to_fetch": ("The job has brought nothing back", "戻ってきたファイルはありません"),
    "no_log": ("There is no {name} of this job: {why}", "このジョブの{name}はありません: {why}"),
    "no_log_yet": ("Nothing in {name} yet; the job is {state}", "{name}はまだ空です。ジョブは{state}です"),
    "log_new_attempt": ("--- attempt {attempt} ---", "--- {attempt}回目の実行 ---"),
    "log_withheld": ("withheld by the site", "サイトが返却を認めていません"),
    "log_none": ("the command never ran, or wrote nothing", "コマンドが動かなかったか、何も書きませんでした"),
    # Changing
    "canceled": ("{id}  canceled", "{id}  取り消しました"),
    "cancel_asked": (
        "{id}  cancel requested; it is {state}, and the site will confirm",
        "{id}  取り消しを依頼しました。現在{state}で、サイトの確認を待ちます",
    ),
    "requeued": ("{id}  queued again, attempt {attempt}", "{id}  再投入しました({attempt}回目)"),
    # Listing and showing
    "ls_more": ("{shown} of {total} jobs; --limit N shows more", "{total}件中{shown}件。--limit Nで増やせます"),
    "audit_none": ("Site {site} has told no head of an audit log", "サイト{site}は監査ログの末尾を伝えていません"),
    "audit_back": ("(WENT BACK from {before})", "(戻った:以前は{before})"),
    "ls_none": ("No jobs", "ジョブはありません"),
    "col_id": ("ID", "ID"),
    "col_state": ("STATE", "状態"),
    "col_site": ("SITE", "サイト"),
    "col_user": ("USER", "ユーザー"),
    "col_command": ("COMMAND", "コマンド"),
    "col_changed": ("CHANGED", "更新"),
    "col_reason": ("REASON", "理由"),
    "col_roles": ("ROLES", "役割"),
    "col_sites": ("SITES", "サイト"),
    "col_last4": ("ENDS IN", "末尾"),
    "col_expires": ("EXPIRES", "期限"),
    "col_counts": ("COUNTS", "有効"),
    "all_sites": ("all", "すべて"),
    "yes": ("yes", "はい"),
    "no": ("no", "いいえ"),
    "revoked": ("revoked", "失効済み"),
    "show_folder": ("folder", "場所"),
    "show_state": ("state", "状態"),
    "show_reason": ("reason", "理由"),
    "show_message": ("message", "説明"),
    "show_next": ("next", "次に"),
    "show_site": ("site", "サイト"),
    "show_user": ("user", "ユーザー"),
    "show_command": ("command", "コマンド"),
    "show_workflow": ("workflow", "ワークフロー"),
    "show_priority": ("priority", "優先度"),
    "show_attempt": ("attempt", "実行回"),
    "show_agent": ("agent", "エージェント"),
    "show_exit": ("exit code", "終了コード"),
    "show_submitted": ("submitted", "投入"),
    "show_claimed": ("claimed", "引き受け"),
    "show_started": ("started", "開始"),
    "show_ended": ("ended", "終了"),
    "show_expires": ("expires", "期限"),
    "show_cancel": ("cancel asked", "取り消し依頼"),
    "show_labels": ("labels", "ラベル"),
    "show_inputs": ("inputs", "入力"),
    "show_wanted": ("outputs asked for", "求めた出力"),
    "show_files": ("returned", "戻った"),
    "show_missing": ("missing", "見つからない"),
    "show_withheld": ("withheld", "サイトが保留"),
    "show_not_carried": ("not carried", "運べない"),
    "show_history": ("history", "履歴"),
    "show_at": ("at", "時刻"),
    # Tokens
    "token_added": (
        "Token {id} for {user}: {roles}; sites: {sites}. It is shown this once:",
        "{user}のトークン{id}: 役割 {roles}、サイト {sites}。表示はこの一度だけです:",
    ),
    "token_site": (
        "  There is no [site {site}] in spool.ini yet (known: {known}): a mistake? Then revoke the token",
        "  spool.iniに[site {site}]がありません(登録済み: {known})。誤りならトークンを失効させてください",
    ),
    "token_revoked": ("Token {id} of {user} counts no more", "{user}のトークン{id}を失効させました"),
    "user_added": ("User {user}: {roles}; sites: {sites}", "ユーザー{user}: 役割 {roles}、サイト {sites}"),
    "user_changed": (
        "{user} has a new password; {count} tokens by login count no more",
        "{user}のパスワードを変更しました。ログインで発行したトークン{count}個を失効させました",
    ),
    "user_removed": (
        "User {user} is removed; {count} tokens by login count no more",
        "ユーザー{user}を削除しました。ログインで発行したトークン{count}個を失効させました",
    ),
    "user_none": ("No users", "ユーザーはいません"),
    "logged_in": ("{path}: a token of {user}, roles {roles}, until {at}", "{path}: {user}のトークン、役割 {roles}、期限 {at}"),
    "token_none": ("No tokens", "トークンはありません"),
    "token_open": (
        "{path} can be read by others: chmod 600 {path}",
        "{path}は他の人も読めます: chmod 600 {path}",
    ),
    # mi-system-wf.py
    "wf_usage": (
        "usage: mi-system-wf.py URL SITE TOKEN|@FILE COMMAND INS OUTS [PARAMS]\n"
        "\n"
        "Registers one calculation, waits for its end and writes OUTS into the current directory.\n"
        "  URL      the server; https unless it is this host, port 50443 unless it names one\n"
        "  SITE     the external computer\n"
        "  TOKEN    the token, better @FILE that holds it: a command line can be seen by everyone on this host\n"
        "  COMMAND  what runs there, as it is registered for the site\n"
        "  INS      input files, separated by ':'\n"
        "  OUTS     names of the results, separated by ':'\n"
        "  PARAMS   one string that is kept with the calculation\n"
        "\n"
        "Exit code: 0 completed, 1 abnormal or refused, 2 usage, 75 try later, 77 not allowed.",
        "使い方: mi-system-wf.py URL SITE TOKEN|@FILE COMMAND INS OUTS [PARAMS]\n"
        "\n"
        "計算を一つ登録し、終了を待ち、OUTSをカレントディレクトリに書きます。\n"
        "  URL      サーバー。このホスト以外はhttps、ポートの指定が無ければ50443\n"
        "  SITE     外部計算機の識別子\n"
        "  TOKEN    トークン。コマンドラインは同じホストの全員に見えるため、@FILE(トークンのファイル)を推奨\n"
        "  COMMAND  識別子に登録されたコマンド\n"
        "  INS      入力ファイル(:区切り)\n"
        "  OUTS     結果ファイルの名前(:区切り)\n"
        "  PARAMS   計算とともに記録される文字列\n"
        "\n"
        "終了コード: 0 正常終了、1 異常終了または拒否、2 使い方の誤り、75 後で再試行、77 許可なし",
    ),
    "wf_token_seen": (
        "mi-system-wf.py: a token on the command line can be seen by everyone on this host (ps); use @FILE",
        "mi-system-wf.py: コマンドラインのトークンは同じホストの全員に見えます(ps)。@FILEを使ってください",
    ),
    "wf_registered": ("accept_id: {id}", "登録しました。accept_id: {id}"),
    "wf_progress": ("progress: {progress}", "進捗: {progress}"),
    "wf_ended": ("status: {status}", "終了: {status}"),
    "wf_not_returned": ("not returned: {name}: {why}", "戻らなかったファイル: {name}: {why}"),
    "wf_not_asked": ("not written, as nobody asked for it: {name}", "求めていないため書きません: {name}"),
    "wf_no_answer": (
        "mi-system-wf.py: {url} has not answered for {seconds} s ({tries} tries): is the address right? Nothing was registered",
        "mi-system-wf.py: {url}から{seconds}秒間応答がありません({tries}回試行)。"
        "アドレスを確認してください。何も登録していません",
    ),
    "wf_cut": ("{signal}: canceling the calculation", "{signal}: 計算を取り消します"),
    "wf_canceled": ("canceled: {id}", "取り消しました: {id}"),
    "wf_not_canceled": (
        "the server could not be told to cancel {id}; it may still run",
        "{id}の取り消しを伝えられませんでした。実行が続いているかもしれません",
    ),
    "wf_error": ("mi-system-wf.py: {message}", "mi-system-wf.py: {title}: {message}"),
    # Errors: the message itself comes from the program that found it, in English
    "error": ("spoolctl: {message}", "spoolctl: {title}: {message}"),
    "hint": ("  {hint}", "  {hint}"),
    "code_configuration": ("configuration", "設定"),
    "code_not_allowed": ("not allowed", "許可されていません"),
    "code_unauthorized": ("not allowed", "トークンが無効です"),
    "code_not_found": ("not found", "見つかりません"),
    "code_invalid_request": ("usage", "指定が正しくありません"),
    "code_invalid_name": ("name", "名前が使えません"),
    "code_conflict": ("conflict", "現在の状態ではできません"),
    "code_rejected": ("rejected", "受け付けられません"),
    "code_no_space": ("no space", "空き容量がありません"),
    "code_busy": ("busy", "ほかの処理が使用中です"),
    "code_unreachable": ("no contact", "応答がありません"),
    "code_other": ("error", "エラー"),
    # What a state means for the person who asks, and what to do next
    "next_drop": (
        "it waits to be accepted; see that spool_server.py or ssh_push.py runs",
        "受け付け待ちです。spool_server.pyかssh_push.pyが動いているか確認してください",
    ),
    "next_rejected": (
        "correct what the reason says and submit again; the folder stays until someone removes it",
        "理由に示された点を直して再投入してください。このフォルダは削除するまで残ります",
    ),
    "next_corrupt": (
        "an operator restores the record and moves the folder back to jobs/",
        "運用者が記録を復元し、フォルダをjobs/に戻してください",
    ),
    "next_new": ("send the inputs and enqueue it, or cancel it", "入力を送ってenqueueするか、取り消してください"),
    "next_queued": (
        "it waits for its site; if that takes long, see that the site's agent runs",
        "サイトの空きを待っています。長引くときはサイトのエージェントを確認してください",
    ),
    "next_claimed": ("the site fetches its inputs; wait", "サイトが入力を受け取っています。お待ちください"),
    "next_running": (
        "the command may be running; spoolctl logs -f ID shows its output",
        "実行中です。spoolctl logs -f ID で出力が見られます",
    ),
    "next_held": (
        "the results wait at the site for a person's release; ask the site",
        "結果はサイトで人の承認を待っています。サイトに依頼してください",
    ),
    "next_returning": ("the results are on their way; wait", "結果を受け取っています。お待ちください"),
    "next_completed": (
        "spoolctl fetch ID --into DIR puts the results into DIR",
        "spoolctl fetch ID --into DIR で結果を取り出せます",
    ),
    "next_failed": (
        "remove the cause, then spoolctl requeue ID, or submit again",
        "原因を取り除き、spoolctl requeue ID か再投入を行ってください",
    ),
    "next_canceled": ("spoolctl requeue ID runs it again", "spoolctl requeue ID で再実行できます"),
    "next_expired": ("spoolctl requeue ID runs it after all", "spoolctl requeue ID で改めて実行できます"),
    "reason_exit_nonzero": (
        "the command ended with an error: read spoolctl logs ID and spoolctl logs --err ID",
        "コマンドがエラーで終わりました。spoolctl logs ID と spoolctl logs --err ID を見てください",
    ),
    "reason_signal": (
        "the command was killed at the site (memory, a crash, its operator): see the logs, ask the site",
        "コマンドがサイトで強制終了しました(メモリ不足など)。ログを見て、サイトに尋ねてください",
    ),
    "reason_wall_time": (
        "it was stopped at its time limit: submit again with a larger --wall-time",
        "制限時間で止められました。--wall-timeを大きくして再投入してください",
    ),
    "reason_no_outputs": (
        "the command ended well but wrote none of the outputs: check --out and the logs",
        "正常終了しましたが出力がありません。--outの指定とログを確認してください",
    ),
    "reason_missing_outputs": (
        "an output asked for is missing and --require-all is set: check --out and the logs",
        "求めた出力の一部がありません(--require-all)。--outの指定とログを確認してください",
    ),
    "reason_refused_by_site": (
        "the site's own rules do not allow this: ask the site's operator",
        "サイトの規則で許可されていません。サイトの運用者に尋ねてください",
    ),
    "reason_spawn": (
        "the command could not be started at the site: its operator checks the [command ...] of agent.ini",
        "サイトでコマンドを起動できませんでした。運用者がagent.iniの[command ...]を確認してください",
    ),
    "reason_transfer": (
        "files could not be carried: spoolctl requeue ID tries it once more",
        "ファイルを運べませんでした。spoolctl requeue ID でもう一度試せます",
    ),
    "reason_lost": (
        "nobody knows how it ended (a restart of the computer): it may have run; requeue it if that does no harm",
        "終わり方が分かりません(計算機の再起動など)。再実行して差し支えなければrequeueしてください",
    ),
    "reason_abnormal": (
        "the site's poller said abnormal: the command failed, or wrote none of the outputs: read its logs",
        "サイトのポーリングプログラムが異常終了を報告しました。ログと出力の指定を確認してください",
    ),
    "reason_given_up": (
        "an operator gave the run up; it may still run at the site",
        "運用者がこの実行を見限りました。サイトでまだ動いている可能性があります",
    ),
    "reason_unreachable": (
        "the site was silent for too long: see that its agent and its line work, then requeue",
        "サイトから長時間連絡がありません。エージェントと回線を確認してからrequeueしてください",
    ),
}  # fmt: skip

CATALOGUE: Catalogue = {**_SAID, **CHECK, **HELP, **HOLDING}


def japanese(environ: Mapping[str, str]) -> bool:
    """True where the locale's messages are Japanese: LC_ALL, else LC_MESSAGES, else LANG (POSIX XBD 8.2)."""
    words = (environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return next((word for word in words if word), "").startswith("ja")


def text(key: str, **values: object) -> str:
    """Return the message `key` in the person's language; every value is escaped on its way in."""
    chosen = CATALOGUE[key][japanese(os.environ)]
    return chosen.format(**{name: printable(str(value)) for name, value in values.items()}).rstrip(" ")


def known(key: str) -> bool:
    """True where the catalogue has `key`."""
    return key in CATALOGUE


def say(key: str, **values: object) -> None:
    """Print a message on standard output, at once."""
    print(text(key, **values), flush=True)


def note(key: str, **values: object) -> None:
    """Print a message on standard error."""
    print(text(key, **values), file=sys.stderr, flush=True)
