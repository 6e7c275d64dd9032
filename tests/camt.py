"""Small bank statements as XML, for tests: one line of text an entry."""

from __future__ import annotations

from clearing.bank.accounts import Account, Accounts

OURS = "9990001"
ACCOUNTS = Accounts(
    currency="VND",
    own=Account(holder="Trung tâm bù trừ", bank_bic="XXMTVNVX", number=OURS),
    parties={
        party: Account(holder=f"Công ty {party}", bank_bic="XXAAVNVX", number=f"8880{number}")
        for number, party in enumerate(("BUSCO", "COOP", "RAIL", "BOATS", "CITY"), start=1)
    },
)


def entry(
    amount: int | str,
    inside: str = "",
    *,
    ref: str = "",
    bank_ref: str = "",
    day: str = "2026-03-05",
    account: str = "",
    text: str = "",
    currency: str = "VND",
    status: str = "<Sts>BOOK</Sts>",
    head: str = "",
) -> str:
    """An entry: `amount` comes in, or with a minus goes out; `inside` stands in its TxDtls, `head` in the entry itself."""
    out = str(amount).startswith("-")
    side = "CdtrAcct" if out else "DbtrAcct"
    other = f"<RltdPties><{side}><Id><Othr><Id>{account}</Id></Othr></Id></{side}></RltdPties>" if account else ""
    remittance = f"<RmtInf><Ustrd>{text}</Ustrd></RmtInf>" if text else ""
    details = f"{other}{remittance}{inside}"
    return (
        "<Ntry>"
        + (f"<NtryRef>{ref}</NtryRef>" if ref else "")
        + f'<Amt Ccy="{currency}">{str(amount).lstrip("-")}</Amt><CdtDbtInd>{"DBIT" if out else "CRDT"}</CdtDbtInd>{head}{status}'
        + f"<BookgDt><Dt>{day}</Dt></BookgDt>"
        + (f"<AcctSvcrRef>{bank_ref}</AcctSvcrRef>" if bank_ref else "")
        + (details if details.startswith("<NtryDtls>") else f"<NtryDtls><TxDtls>{details}</TxDtls></NtryDtls>" if details else "")
        + "</Ntry>"
    )


def balance(code: str, amount: int, currency: str = "VND") -> str:
    sign = "CRDT" if amount >= 0 else "DBIT"
    return (
        f"<Bal><Tp><CdOrPrtry><Cd>{code}</Cd></CdOrPrtry></Tp>"
        f'<Amt Ccy="{currency}">{abs(amount)}</Amt><CdtDbtInd>{sign}</CdtDbtInd></Bal>'
    )


def camt(
    *entries: str,
    opening: int = 1_000_000,
    moved: int = 0,
    version: str = "08",
    account: str = OURS,
    statement: str = "S1",
    summary: str = "",
    currency: str = "VND",
) -> bytes:
    """A statement; `moved` is what its entries sum to."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><Document xmlns="urn:iso:std:iso:20022:tech:xsd:camt.053.001.{version}">'
        f"<BkToCstmrStmt><GrpHdr><MsgId>M</MsgId></GrpHdr><Stmt><Id>{statement}</Id>"
        f"<Acct><Id><Othr><Id>{account}</Id></Othr></Id><Ccy>{currency}</Ccy></Acct>"
        f"{balance('OPBD', opening, currency)}{balance('CLBD', opening + moved, currency)}{summary}{''.join(entries)}"
        "</Stmt></BkToCstmrStmt></Document>"
    ).encode()
