"""What spoolctl says of signatures and of what operators hold back: id -> (English, Japanese). Part of `spool.ctl.messages`."""

from __future__ import annotations

HOLDING: dict[str, tuple[str, str]] = {
    "show_signed": ("signed", "署名"),
    "signed_by": (
        "{name} (as the signature names it; the site verifies it)",
        "{name} (署名に書かれた鍵。検証はサイトが行います)",
    ),
    "site_disabled": (
        "Site {name} is disabled: new jobs are refused, what waits stays; what it has in hand comes home",
        "サイト{name}を無効にしました。新しいジョブは断られ、待機中のものは残り、実行中のものの結果は受け取ります",
    ),
    "site_enabled": ("Site {name} is enabled", "サイト{name}を有効にしました"),
    "site_disabled_in_ini": (
        "It stays disabled: [site {name}] enabled = no stands in spool.ini",
        "spool.iniの[site {name}]にenabled = noがあるため、無効のままです",
    ),
    "workflow_disabled": (
        "Workflow {name} is disabled: new jobs are refused, what waits stays and is not given out",
        "ワークフロー{name}を無効にしました。新しいジョブは断られ、待機中のものは渡されずに残ります",
    ),
    "workflow_enabled": ("Workflow {name} is enabled", "ワークフロー{name}を有効にしました"),
    "paused": (
        "Site {name} is paused: no job is given out; what it has goes on",
        "サイト{name}を一時停止しました。実行中のものは続きます",
    ),
    "paused_all": ("Every site is paused: no job is given out", "すべてのサイトを一時停止しました"),
    "resumed": ("Site {name} is resumed", "サイト{name}を再開しました"),
    "resumed_all": ("Every pause, and stop-all, is undone", "すべての一時停止とstop-allを取り消しました"),
    "held_back_still": ("Still held back: {why}", "まだ止められています: {why}"),
    "not_drained": (
        "{count} jobs are still with a site; nothing new is given out. Wait again: the same command",
        "まだ{count}件がサイトにあります。新しいジョブは渡されません。同じコマンドでまた待てます",
    ),
    "drained": ("Nothing is in hand, and nothing new is given out", "手持ちは無くなりました。新しいジョブは渡されません"),
    "stopped_all": (
        "Everything is stopped: no job is given out or started, at any site. Undo it: spoolctl resume --all",
        "すべて停止しました。どのサイトでもジョブは渡されず、開始されません。取り消す: spoolctl resume --all",
    ),
    "goes_on": (
        "{id}  {state} at {site}: goes on (stop-all --kill cancels it)",
        "{id}  {site}で{state}: 続きます(stop-all --killで取り消し)",
    ),
    "not_canceled": ("{id}  not canceled: {message}", "{id}  取り消せません: {message}"),
    "disabled_in_ini": ("disabled in spool.ini", "spool.iniで無効"),
    "site_none": ("No sites: spool.ini has none", "spool.iniにサイトがありません"),
    "workflow_none": ("No workflow is disabled", "無効のワークフローはありません"),
    "col_workflow": ("WORKFLOW", "ワークフロー"),
    "col_held_back": ("HELD BACK HERE", "MIntでの停止"),
    "col_standing": ("BY THE SITE", "サイトでの停止"),
    "col_contact": ("LAST CONTACT", "最終連絡"),
}  # fmt: skip
