"""What `spoolctl check` says: id -> (English, Japanese). Part of the catalogue in `spool.ctl.messages`.

``found_CODE``: what is wrong. ``done_CODE``: what the repair did. ``do_CODE``: what is left to a person, before or after it.
"""

from __future__ import annotations

_CORRUPT = ("the folder was moved to corrupt/, with reason.json", "フォルダをreason.jsonとともにcorrupt/に移しました")
_RESTORE = (
    "in corrupt/: restore the record (from a backup), move the folder back to jobs/, then spoolctl check --repair",
    "corrupt/で記録をバックアップなどから復元し、フォルダをjobs/に戻してspoolctl check --repairを実行してください",
)
_LOOK = ("see what it is; remove it when nobody needs it", "内容を確かめ、不要なら削除してください")

CHECK: dict[str, tuple[str, str]] = {
    "check_healthy": (
        "Healthy: {jobs} jobs looked at, {remarks} remarks, {repaired} repaired",
        "正常: ジョブ{jobs}件を確認、注意{remarks}件、修復{repaired}件",
    ),
    "check_wrong": (
        "{problems} problems, {remarks} remarks, {repaired} repaired; {jobs} jobs looked at",
        "問題{problems}件、注意{remarks}件、修復{repaired}件。ジョブ{jobs}件を確認",
    ),
    "check_problem": ("PROBLEM {what}", "問題 {what}"),
    "check_remark": ("remark  {what}", "注意 {what}"),
    "check_repaired": ("repaired {what}", "修復 {what}"),
    "check_line": ("        {words}", "     {words}"),
    "check_repair": ("spoolctl check --repair puts it right", "spoolctl check --repairで修復できます"),
    "check_repairable": (
        "spoolctl check --repair puts it right; then: {do}",
        "spoolctl check --repairで修復できます。その後: {do}",
    ),
    "check_not_repaired": ("it could not be repaired: {why}  {do}", "修復できませんでした: {why}  {do}"),
    # The house
    "found_unknown_format": ("{why}", "形式が異なります: {why}"),
    "found_folder_missing": ("the folder {name}/ is missing", "フォルダ{name}/がありません"),
    "done_folder_missing": ("it was made, with mode 2770", "モード2770で作りました"),
    "do_folder_missing": ("find out who removed it, and what was in it", "削除の経緯と、中にあったものを確かめてください"),
    "found_folder_link": ("{name} is a link, not a folder", "{name}がフォルダではなくリンクです"),
    "do_folder_link": ("put the folder itself there", "フォルダそのものを置いてください"),
    "found_folder_not": ("{name} is not a folder", "{name}がフォルダではありません"),
    "done_folder_not": ("it was moved to corrupt/, and the folder was made", "corrupt/に移し、フォルダを作りました"),
    "do_folder_not": _LOOK,
    "found_folder_mode": ("{name}/ has the mode {mode}, not 2770", "{name}/のモードが2770ではなく{mode}です"),
    "done_folder_mode": ("the mode was set", "モードを直しました"),
    "found_locks_missing": ("{count} lock files are missing: {names}", "ロックファイルが{count}個ありません: {names}"),
    "done_locks_missing": ("they were made", "作りました"),
    "do_locks_missing": (
        "find out who removed them: a lock on a removed file guards nothing",
        "削除の経緯を確かめてください。消えたファイルのロックは何も守りません",
    ),
    "found_locks_odd": (
        "{count} lock files are no regular files: {names}",
        "ロックファイル{count}個が通常のファイルではありません: {names}",
    ),
    "done_locks_odd": ("they were moved to corrupt/ and made anew", "corrupt/に移し、作り直しました"),
    "do_locks_odd": _LOOK,
    "found_locks_mode": ("{count} lock files have a wrong mode: {names}", "ロックファイル{count}個のモードが違います: {names}"),
    "done_locks_mode": ("the modes were set to 0660", "モードを0660に直しました"),
    "found_not_owner": (
        "the spool belongs to uid {owner}, this is uid {uid}: drops are accepted by the owner only",
        "スプールの所有者はuid {owner}、こちらはuid {uid}です。受け付けは所有者だけが行います",
    ),
    "do_not_owner": ("run the server or the push as the owner", "サーバーかpushを所有者として動かしてください"),
    # The surroundings
    "found_config_wrong": ("configuration: {why}", "設定: {why}"),
    "found_no_ini": (
        "no spool.ini is known: no site, so every job is refused",
        "spool.iniが見つからず、サイトが無いため全ジョブが拒否されます",
    ),
    "do_no_ini": (
        "start the server with --config, or make {path}",
        "--configを付けてサーバーを起動するか、{path}を作ってください",
    ),
    "found_disk_low": (
        "{free} bytes are free, {needed} must stay free: nothing new is taken",
        "空きは{free}バイトで、残すべき{needed}バイトを下回ります。新しいジョブは受け付けません",
    ),
    "do_disk_low": ("free space on the spool's disk", "スプールのディスクを空けてください"),
    "found_disk_nearly": (
        "the disk is more than {part} full, {free} bytes are free",
        "ディスクの使用率が{part}を超え、空きは{free}バイトです",
    ),
    "do_disk_nearly": ("free space on the spool's disk", "スプールのディスクを空けてください"),
    "found_inodes": ("{free} inodes are free", "空きinodeが{free}個です"),
    "do_inodes": ("remove small files from the spool's disk", "スプールのディスクから小さなファイルを減らしてください"),
    "found_read_only": ("the file system is mounted read-only", "ファイルシステムが読み取り専用です"),
    "do_read_only": ("remount it writable", "書き込み可能にマウントし直してください"),
    "found_tokens_open": ("{path} can be read by others (mode {mode})", "{path}は他の人も読めます(モード{mode})"),
    "found_tokens_denied": ("the token file cannot be read by this user", "トークンファイルをこのユーザーは読めません"),
    "do_tokens_denied": ("run the check as the owner of the spool", "スプールの所有者として検査してください"),
    "found_tokens_wrong": ("token file: {why}", "トークンファイル: {why}"),
    "found_locks_same": (
        "two processes get the same lock: flock(2) does nothing on this file system",
        "二つのプロセスが同じロックを取れます。このファイルシステムではflock(2)が働きません",
    ),
    "do_locks_same": (
        "put the spool on a file system with coherent locks (not sshfs, not NFS with nolock)",
        "ロックが正しく働くファイルシステムに置いてください(sshfsやnolockのNFSは不可)",
    ),
    "found_locks_unlinked": (
        "{release} unlinks the lock file when it releases the lock: two programs can hold one lock",
        "{release}は解放時にロックファイルを消すため、二つのプログラムが同じロックを持てます",
    ),
    "do_locks_unlinked": (
        "pip install 'filelock>=3.29.5', or 3.19.1 for Python 3.9",
        "pip install 'filelock>=3.29.5'(Python 3.9では3.19.1)",
    ),
    "found_locks_failed": ("a lock cannot be taken in tmp/: {why}", "tmp/でロックを取れません: {why}"),
    "do_locks_failed": (
        "check rights, space and the file system of the spool",
        "権限、空き容量、ファイルシステムを確かめてください",
    ),
    # The folders of the jobs
    "found_not_job": ("jobs/{name} is not a job", "jobs/{name}はジョブではありません"),
    "done_not_job": ("it was moved to corrupt/, with reason.json", "reason.jsonとともにcorrupt/に移しました"),
    "do_not_job": _LOOK,
    "found_job_busy": ("the lock of the job was not free; it was not looked at", "ロックが空かず、このジョブは確認していません"),
    "do_job_busy": ("look again", "もう一度検査してください"),
    "found_job_not_folder": ("jobs/{id} is not a folder", "jobs/{id}がフォルダではありません"),
    "done_job_not_folder": ("it was moved to corrupt/, with reason.json", "reason.jsonとともにcorrupt/に移しました"),
    "do_job_not_folder": _RESTORE,
    "found_job_mode": ("jobs/{id} has the mode {mode}, not 2770", "jobs/{id}のモードが2770ではなく{mode}です"),
    "done_job_mode": ("the mode was set", "モードを直しました"),
    "found_record_missing": ("jobs/{id} has no {name}", "jobs/{id}に{name}がありません"),
    "done_record_missing": _CORRUPT,
    "do_record_missing": _RESTORE,
    "found_record_wrong": ("a record of jobs/{id} cannot be read: {why}", "jobs/{id}の記録を読めません: {why}"),
    "done_record_wrong": _CORRUPT,
    "do_record_wrong": _RESTORE,
    "found_record_newer": ("a record of jobs/{id} is of another format: {why}", "jobs/{id}の記録の形式が異なります: {why}"),
    "do_record_newer": ("use the release that wrote it, or a newer one", "それを書いた版か、より新しい版を使ってください"),
    "found_record_denied": ("a record of jobs/{id} cannot be opened: {why}", "jobs/{id}の記録を開けません: {why}"),
    "do_record_denied": ("check owner, mode and the disk", "所有者、モード、ディスクを確かめてください"),
    "found_state_foreign": (
        "state.json of jobs/{id} is of job {other}: someone copied a folder",
        "jobs/{id}のstate.jsonはジョブ{other}のものです(フォルダの複製)",
    ),
    "done_state_foreign": _CORRUPT,
    "do_state_foreign": ("remove the copy in corrupt/ when nobody needs it", "corrupt/の複製が不要なら削除してください"),
    "found_temps": (
        "temporary files of a killed writer in jobs/{id}: {names}",
        "jobs/{id}に書きかけの一時ファイルがあります: {names}",
    ),
    "done_temps": ("they were removed; the records are whole", "削除しました。記録は無事です"),
    "found_history_odd": (
        "history.jsonl of jobs/{id} is not a regular file",
        "jobs/{id}のhistory.jsonlが通常のファイルではありません",
    ),
    "done_history_odd": ("it was moved to corrupt/; a new one is begun", "corrupt/に移しました。新しく始めます"),
    "do_history_odd": _LOOK,
    "found_history_behind": (
        "history.jsonl of jobs/{id} lacks the last change",
        "jobs/{id}のhistory.jsonlに最後の変更がありません",
    ),
    "done_history_behind": ("it was added, from state.json", "state.jsonから補いました"),
    "found_result_wrong": (
        "result.json of jobs/{id}, which has not ended, cannot be read: {why}",
        "終わっていないjobs/{id}のresult.jsonを読めません: {why}",
    ),
    "done_result_wrong": ("it was moved to corrupt/; the site brings another", "corrupt/に移しました。サイトが改めて届けます"),
    "do_result_wrong": _LOOK,
    "found_new_missing": (
        "job {id} is new and has no entry in new/: it would never expire",
        "ジョブ{id}はnewですがnew/に無く、期限切れになりません",
    ),
    "done_new_missing": ("the entry was added", "new/に加えました"),
    "found_queue_missing": (
        "job {id} is queued and has no entry in queue/: nobody will take it up",
        "ジョブ{id}はqueuedですがqueue/に無く、誰も引き受けません",
    ),
    "done_queue_missing": ("the entry was added", "queue/に加えました"),
    "found_queue_key_wrong": (
        "job {id} is queued under the key {word!r}, which no claimer finds",
        "ジョブ{id}の待ち行列のキー{word!r}では引き受けられません",
    ),
    "done_queue_key_wrong": ("it was queued under a new key", "新しいキーで並べ直しました"),
    "found_active_missing": (
        "job {id} is {state} and has no entry in active/: its agent is not told of it",
        "ジョブ{id}は{state}ですがactive/に無く、エージェントに伝わりません",
    ),
    "done_active_missing": ("the entry was added", "active/に加えました"),
    "found_agent_wrong": (
        "job {id} is {state} and names the agent {agent!r}, which is no name",
        "ジョブ{id}は{state}ですが、エージェント名{agent!r}が名前になっていません",
    ),
    "do_agent_wrong": ("spoolctl requeue --force gives the run up", "spoolctl requeue --forceで見限れます"),
    "found_requeue_half": (
        "a requeue of job {id} stopped half way: it is {state}, and part of it is in attempts/{attempt}/",
        "ジョブ{id}の再投入が途中で止まりました。状態は{state}で、一部がattempts/{attempt}/にあります",
    ),
    "done_requeue_half": ("it was undone: everything is back at its place", "元の場所に戻しました"),
    "do_requeue_half": ("spoolctl requeue, where it is still wanted", "必要ならspoolctl requeueをやり直してください"),
    "found_result_missing": (
        "job {id} is completed and has no result.json of its run",
        "ジョブ{id}はcompletedですが、その実行のresult.jsonがありません",
    ),
    "do_result_missing": (
        "restore it from a backup, or spoolctl requeue",
        "バックアップから戻すか、spoolctl requeueを行ってください",
    ),
    "found_incoming_left": (
        "incoming/ of job {id} is left over: its result was accepted",
        "受け付け済みのジョブ{id}にincoming/が残っています",
    ),
    "done_incoming_left": ("it was removed", "削除しました"),
    "found_results_here": (
        "job {id} is {state}, and its results are all at their place: accepting them was cut off",
        "ジョブ{id}は{state}ですが結果はすべて届いています(受け付けが途切れました)",
    ),
    "done_results_here": (
        "they were verified once more and accepted; the job has ended",
        "改めて照合して受け付けました。ジョブは終了しました",
    ),
    "found_results_half": (
        "job {id} is {state}, and some of its results were moved to out/ or log/ already",
        "ジョブ{id}は{state}ですが、結果の一部がすでにout/かlog/に移っています",
    ),
    "done_results_half": (
        "they were moved back to incoming/: the site's next try finds them",
        "incoming/に戻しました。サイトの次の試行で続きます",
    ),
    # The indexes
    "found_index_mode": ("{path}/ has the mode {mode}, not 2770", "{path}/のモードが2770ではなく{mode}です"),
    "done_index_mode": ("the mode was set", "モードを直しました"),
    "found_entry_strange": (
        "{path} is no entry of this index: strange, and ignored",
        "{path}はこの索引の項目ではなく、無視されます",
    ),
    "done_entry_strange": (
        "it was removed, or moved to corrupt/ where it holds something",
        "削除しました(中身があればcorrupt/に移しました)",
    ),
    "found_entry_stale": ("{path} is stale: no job stands behind it", "{path}は古い項目です(対応するジョブがありません)"),
    "done_entry_stale": ("it was removed", "削除しました"),
    # What lies about
    "found_tmp_accept": ("tmp/{name}: a drop that nobody goes on accepting", "tmp/{name}: 受け付けが途中で止まっています"),
    "done_tmp_accept": (
        "it was carried on: the job is queued, or in rejected/ with the reason",
        "続きを行いました(ジョブは待ち行列か、理由付きでrejected/)",
    ),
    "do_tmp_accept": ("the server or the push carries it on when it runs", "サーバーかpushが動けば続きを行います"),
    "found_tmp_scratch": ("tmp/{name} is left over from a request", "tmp/{name}は要求の残骸です"),
    "done_tmp_scratch": ("it was removed", "削除しました"),
    "found_tmp_ours": (
        "tmp/{name} is left over from a program that was killed",
        "tmp/{name}は途中で終わったプログラムの残骸です",
    ),
    "done_tmp_ours": ("it was removed", "削除しました"),
    "found_tmp_other": ("tmp/{name} has not changed for more than an hour", "tmp/{name}は1時間以上変化していません"),
    "do_tmp_other": ("if nobody works on it or needs it: rm -r {path}", "誰も使わず不要なら: rm -r {path}"),
    "found_drop_waits": ("drop/{name} waits to be accepted", "drop/{name}が受け付けを待っています"),
    "do_drop_waits": (
        "see that the server or the push runs, as the owner of the spool",
        "サーバーかpushが所有者として動いているか確かめてください",
    ),
    "found_drop_taken": ("drop/{name}: the original of a copied drop", "drop/{name}: 複製して受け付けた投入の原本"),
    "done_drop_taken": ("it was removed: the job has the same bytes", "同じ内容のジョブがあるため削除しました"),
    "do_drop_taken": ("its owner removes it when nobody needs it", "不要なら所有者が削除してください"),
    "found_temp": ("{path}: a temporary file of a killed writer", "{path}: 書きかけの一時ファイル"),
    "done_temp": ("it was removed", "削除しました"),
    "found_reason_missing": ("{path} has no reason.json", "{path}にreason.jsonがありません"),
    "done_reason_missing": ("one was written that says so", "その旨を書いたreason.jsonを置きました"),
    "found_in_rejected": ("rejected/{name}: {why}", "rejected/{name}: {why}"),
    "do_in_rejected": ("see {path}/reason.json; remove it when done", "{path}/reason.jsonを見て、済んだら削除してください"),
    "found_in_corrupt": ("corrupt/{name}: {why}", "corrupt/{name}: {why}"),
    "do_in_corrupt": ("see {path}/reason.json; remove it when done", "{path}/reason.jsonを見て、済んだら削除してください"),
    # The journal
    "found_journal_odd": ("journal/{name} is not a regular file", "journal/{name}が通常のファイルではありません"),
    "done_journal_odd": ("it was moved to corrupt/", "corrupt/に移しました"),
    "do_journal_odd": _LOOK,
    "found_journal_lacks": (
        "journal/ lacks changes of {jobs} jobs, from {day} on",
        "journal/にジョブ{jobs}件の変更が欠けています({day}以降)",
    ),
    "done_journal_lacks": ("they were added, from the jobs' histories", "各ジョブの履歴から補いました"),
}  # fmt: skip
