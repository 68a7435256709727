from agent.company import Company
def test_runs(company: Company) -> None:
    company.start()
    job = company.sh("cat a.inp > b.dat; echo hi", inputs={"a.inp": b"x"}, outputs=("*.dat",))
    assert company.completed(job) == {"b.dat": b"x"}
