"""A requeue needs the inputs that were taken in: without them the command would run on nothing."""

from __future__ import annotations

from server.client import Service
from server.spools import job_json


def test_a_job_that_was_never_enqueued_cannot_be_requeued(service: Service) -> None:
    submitter, operator = service.client("alice", "submitter"), service.client("carol", "operator")
    body = job_json(inputs=["beam.inp"], user="alice")
    name = submitter("POST", "/v1/jobs", body).json["id"]
    assert submitter("POST", f"/v1/jobs/{name}/cancel").json["state"] == "canceled"
    answer = operator("POST", f"/v1/jobs/{name}/requeue")
    assert (answer.status, answer.json["code"]) == (409, "conflict")
    assert "never enqueued" in answer.json["message"]
