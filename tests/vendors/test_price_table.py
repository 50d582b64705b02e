"""What requests cost, in one table: every row priced by the steps that the proxy takes, checked by hand.

A row is a request, its body, what it costs (``$...``) or the code of its refusal, and the arithmetic or, of a
refusal, words that it says. The figures were worked out on paper from the prices that stand beside
them, never by functions of ours. To add a row, find its vendor below and write it in.

The exchange rates are made up, so that a person can multiply by them.
"""

import json
from decimal import Decimal
from typing import NamedTuple
from urllib.parse import quote_plus

import pytest

from kbctld.core.document import DocumentError
from kbctld.core.form import FormError
from kbctld.core.money import NANO_PER_USD, rates_from, usd_from_nano
from kbctld.core.policy import Permit
from kbctld.core.refusal import Code, Refusal
from kbctld.core.tokens import TokenApi, spent
from tests.vendors.test_vendor_files import PRICES, VENDORS, attempt

ROWS_AT_LEAST = 150

# US dollars for one.
ONE = {
    "EUR": "1.1", "GBP": "1.3", "CHF": "1.2", "CAD": "0.7", "AUD": "0.65", "MXN": "0.05", "INR": "0.012",
    # No decimals at Stripe:
    "BIF": "0.0004", "CLP": "0.001", "DJF": "0.0056", "GNF": "0.0001", "JPY": "0.0067", "KMF": "0.0022",
    "KRW": "0.0007", "MGA": "0.0002", "PYG": "0.0001", "RWF": "0.0007", "UGX": "0.0003", "VND": "0.00004",
    "VUV": "0.008", "XAF": "0.0016", "XOF": "0.0016", "XPF": "0.009",
    # Three:
    "BHD": "2.65", "JOD": "1.41", "KWD": "3.25", "OMR": "2.6", "TND": "0.32",
    # Two, though people write none:
    "ISK": "0.007", "HUF": "0.0025", "TWD": "0.03",
}  # fmt: skip
RATES = rates_from("2026-11-20", {code: Decimal(usd) for code, usd in ONE.items()})


class Row(NamedTuple):
    """One line of the table."""

    vendor: str
    request: str
    body: str
    outcome: str
    why: str


# --- Stripe: amounts in minor units ----------------------------------------------------------------------

PAY = "POST /v1/payment_intents"


def pay(minor: int | str, currency: str) -> str:
    return f"amount={minor}&currency={currency}"


CHECKOUT = "POST /v1/checkout/sessions"
OUT = "POST /v2/money_management/outbound_payments"


def items(*lines: tuple[int, int], currency: str = "usd", first: int = 0) -> str:
    """Line items, each with its amount and quantity."""
    return "mode=payment" * (first == 0) + "".join(
        f"&line_items[{number}][price_data][currency]={currency}"
        f"&line_items[{number}][price_data][unit_amount]={minor}&line_items[{number}][quantity]={quantity}"
        for number, (minor, quantity) in enumerate(lines, start=first)
    )


STRIPE = [
    # (request, body, outcome, why)
    (PAY, pay(100, "usd"), "$1", "100 cents"),
    (PAY, pay(1, "usd"), "$0.01", "1 cent"),
    (PAY, pay(0, "usd"), "$0", "nothing"),
    (PAY, pay("0099", "usd"), "$0.99", "leading zeros are digits"),
    (PAY, pay(99_999_999, "USD"), "$999999.99", "the largest that Stripe takes; capitals"),
    (PAY, pay(1999, "eur"), "$21.989", "19.99 x 1.1"),
    (PAY, pay(1000, "gbp"), "$13", "10 x 1.3"),
    (PAY, pay(1, "gbp"), "$0.013", "0.01 x 1.3"),
    (PAY, pay(250, "chf"), "$3", "2.50 x 1.2"),
    (PAY, pay(3333, "cad"), "$23.331", "33.33 x 0.7"),
    (PAY, pay(4000, "aud"), "$26", "40 x 0.65"),
    (PAY, pay(10_000, "mxn"), "$5", "100 x 0.05"),
    (PAY, pay(50_000, "inr"), "$6", "500 x 0.012"),
    # The sixteen without decimals: one unit is one unit.
    (PAY, pay(5000, "bif"), "$2", "5,000 x 0.0004"),
    (PAY, pay(9000, "clp"), "$9", "9,000 x 0.001"),
    (PAY, pay(1000, "djf"), "$5.6", "1,000 x 0.0056"),
    (PAY, pay(80_000, "gnf"), "$8", "80,000 x 0.0001"),
    (PAY, pay(1000, "jpy"), "$6.7", "1,000 x 0.0067"),
    (PAY, pay(1000, "kmf"), "$2.2", "1,000 x 0.0022"),
    (PAY, pay(10_000, "krw"), "$7", "10,000 x 0.0007"),
    (PAY, pay(10_000, "mga"), "$2", "10,000 x 0.0002; two decimals in ISO 4217, none at Stripe"),
    (PAY, pay(70_000, "pyg"), "$7", "70,000 x 0.0001"),
    (PAY, pay(3000, "rwf"), "$2.1", "3,000 x 0.0007"),
    (PAY, pay(10_000, "ugx"), "$3", "10,000 x 0.0003; Stripe's two lists differ, none is the dearer"),
    (PAY, pay(250_000, "vnd"), "$10", "250,000 x 0.00004"),
    (PAY, pay(500, "vuv"), "$4", "500 x 0.008"),
    (PAY, pay(5000, "xaf"), "$8", "5,000 x 0.0016"),
    (PAY, pay(2500, "xof"), "$4", "2,500 x 0.0016"),
    (PAY, pay(1000, "xpf"), "$9", "1,000 x 0.009"),
    (PAY, pay(1, "JPY"), "$0.0067", "1 x 0.0067"),
    # The five with three.
    (PAY, pay(10_000, "bhd"), "$26.5", "10 x 2.65"),
    (PAY, pay(5000, "jod"), "$7.05", "5 x 1.41"),
    (PAY, pay(1230, "kwd"), "$3.9975", "1.230 x 3.25"),
    (PAY, pay(2500, "omr"), "$6.5", "2.5 x 2.6"),
    (PAY, pay(25_000, "tnd"), "$8", "25 x 0.32"),
    (PAY, pay(10, "KWD"), "$0.0325", "0.010 x 3.25"),
    # Two, though their coins are gone.
    (PAY, pay(50_000, "isk"), "$3.5", "500 x 0.007; sent with two decimals"),
    (PAY, pay(40_000, "huf"), "$1", "400 x 0.0025"),
    (PAY, pay(30_000, "twd"), "$9", "300 x 0.03"),
    # The same amount elsewhere.
    ("POST /v1/charges", pay(2000, "usd"), "$20", "20.00"),
    ("POST /v1/charges", "capture=false&" + pay(2000, "jpy"), "$13.4", "2,000 x 0.0067; held money counts"),
    ("POST /v1/transfers", pay(4200, "usd") + "&destination=acct_1", "$42", "42.00"),
    ("POST /v1/payouts", pay(30_000, "twd"), "$9", "300 x 0.03"),
    ("POST /v1/payouts", pay(1_000_000, "huf"), "$25", "10,000 x 0.0025"),
    ("POST /v1/topups", pay(100_000, "usd"), "$1000", "1,000.00"),
    # Where a price stands in no request.
    (PAY, "currency=usd", "amount_unknown", "it states no amount"),
    (PAY, "amount=&currency=usd", "amount_unknown", "amount"),
    (PAY, "amount=100", "amount_unknown", "it states no currency"),
    (PAY, pay("20.5", "usd"), "amount_unknown", "not a plain count of minor units"),
    (PAY, pay("1e3", "usd"), "amount_unknown", "not a plain count of minor units"),
    (PAY, pay("20_00", "usd"), "amount_unknown", "not a plain count of minor units"),
    (PAY, pay("-5", "usd"), "amount_unknown", "not a plain count of minor units"),
    (PAY, pay("%2B5", "usd"), "amount_unknown", "not a plain count of minor units"),
    (PAY, pay("%EF%BC%95", "usd"), "amount_unknown", "not a plain count of minor units"),
    (PAY, pay("1" * 13, "usd"), "amount_unknown", "not a plain count of minor units"),
    (PAY, pay(100, "dollars"), "amount_unknown", "not a three-letter code"),
    (PAY, pay(100, "xxx"), "amount_unknown", "no US dollar rate for XXX"),
    (PAY, pay(100, "aed"), "amount_unknown", "no US dollar rate for AED"),
    (PAY, "amount=100&amount=1&currency=usd", "ambiguous_request", "amount can be read in more than one way"),
    (PAY, "amount[0]=100&currency=usd", "ambiguous_request", "amount can be read in more than one way"),
    (PAY, "amount=100&currency=usd&Currency=jpy", "ambiguous_request", "currency can be read"),
    (PAY + "?amount=1", pay(100, "usd"), "ambiguous_request", "amount stands in the query"),
    ("POST /v1/payment_intents/pi_1/capture", "amount_to_capture=5", "amount_unknown", "not made through"),
    ("POST /v1/payment_intents/pi_1/confirm", "", "amount_unknown", "not made through kbctl"),
    ("POST /v1/charges/ch_1/capture", "", "amount_unknown", "not made through kbctl"),
    ("POST /v1/refunds", "payment_intent=pi_1", "amount_unknown", "it states no amount"),
    # A KWD, the dearest there is, has a thousand units; of those with a hundred the pound is dearest.
    ("POST /v1/refunds", "charge=ch_1&amount=500", "$6.5", "500 of the dearest minor unit: 5.00 x 1.3"),
    ("POST /v1/charges/ch_1/refund", "amount=100", "$1.3", "100 of the dearest minor unit: 1.00 x 1.3"),
    ("POST /v1/transfers/tr_1/reversals", "amount=10", "$0.13", "10 of the dearest minor unit: 0.10 x 1.3"),
    # What will be charged follows from things that the request only names.
    ("POST /v1/invoices/in_1/pay", "", "amount_unknown", "nobody counted it yet"),
    ("POST /v1/invoices/in_1/finalize", "", "amount_unknown", "nobody counted it yet"),
    ("POST /v1/invoices", "customer=cus_1", "amount_unknown", "charged later"),
    ("POST /v1/subscriptions", "customer=cus_1&items[0][price]=p_1", "amount_unknown", ""),
    (
        "POST /v1/checkout/sessions",
        "line_items[0][price]=price_1&line_items[0][quantity]=2",
        "amount_unknown",
        "line_items.price may change",
    ),
    # Line items: the sum of amount times quantity.
    (CHECKOUT, items((500, 2)), "$10", "2 x 5.00"),
    (CHECKOUT, items((500, 2), (1999, 1)), "$29.99", "2 x 5.00 + 19.99"),
    (CHECKOUT, items((1, 1), (1, 1), (1, 1)), "$0.03", "3 x 0.01"),
    (CHECKOUT, items((1000, 3), currency="jpy"), "$20.1", "3 x 1,000 x 0.0067"),
    (CHECKOUT, items((1500, 2), currency="kwd"), "$9.75", "2 x 1.500 x 3.25"),
    (CHECKOUT, items((500, 0)), "$0", "none of it"),
    (CHECKOUT, items((500, 1)) + "&line_items[1][price]=price_1", "amount_unknown", "line_items.price may"),
    (CHECKOUT, items((500, 1)) + "&line_items[1][quantity]=2", "amount_unknown", "lacks a plain"),
    (
        CHECKOUT,
        items((500, 1)) + "&automatic_tax[enabled]=true",
        "amount_unknown",
        "automatic_tax may",
    ),
    (CHECKOUT, items((500, 1)).replace("quantity]=1", "quantity]=1.5"), "amount_unknown", "lacks a plain"),
    (CHECKOUT, items((500, 1)) + items((5, 1), currency="eur", first=1), "amount_unknown", "several"),
    (CHECKOUT, "mode=payment", "amount_unknown", "it states no line_items"),
    # Beyond v1, amounts stand in JSON objects.
    (OUT, '{"amount": {"value": 2500, "currency": "usd"}}', "$25", "25.00"),
    (OUT, '{"amount": {"value": 900, "currency": "jpy"}}', "$6.03", "900 x 0.0067"),
    (OUT, '{"amount": {"value": 25.5, "currency": "usd"}}', "amount_unknown", "amount.value"),
    (OUT, '{"amount": {"currency": "usd"}}', "amount_unknown", "it states no amount.value"),
    ("POST /v1/payment_links", "line_items[0][price]=price_1", "amount_unknown", "any number of times"),
    ("POST /v1/quotes/qt_1/accept", "", "amount_unknown", ""),
    ("POST /v1/credit_notes", "invoice=in_1", "amount_unknown", ""),
    ("POST /v1/no/such/thing", "amount=1", "amount_unknown", "no vendor file lists it"),
    ("POST /v1/webhook_endpoints", "url=https://evil.test", "endpoint_not_allowed", "webhook_endpoints"),
    # Free.
    ("GET /v1/charges?limit=3", "", "$0", "a read"),
    ("GET /v1/nothing/that/we/know", "", "$0", "a read that no file lists"),
    ("POST /v1/customers", "email=a%40b.test", "$0", "moves no money"),
    ("POST /v1/payment_intents/pi_1/cancel", "", "$0", "moves no money"),
]

# --- Twilio: segments x $0.0145 in the United States, $0.06 in Great Britain, $1 elsewhere --------------

MESSAGES = "POST /2010-04-01/Accounts/AC00000000000000000000000000000000/Messages.json"
CALLS = "POST /2010-04-01/Accounts/AC00000000000000000000000000000000/Calls.json"
US, GB, DE = "%2B14155550100", "%2B447400123456", "%2B4915112345678"
MEDIA = "&MediaUrl=https%3A%2F%2Fa.test%2F1.png"


DIAL = "%3CResponse%3E%3CDial%3E%2B1%3C%2FDial%3E%3C%2FResponse%3E"


def text(said: str, to: str = US) -> str:
    return f"To={to}&From=%2B14155550111&Body={quote_plus(said)}"


TWILIO = [
    (MESSAGES, text("Hello"), "$0.0145", "1 segment"),
    (MESSAGES, text("a" * 160), "$0.0145", "160 in GSM-7: 1"),
    (MESSAGES, text("a" * 161), "$0.029", "161 = 153 + 8: 2"),
    (MESSAGES, text("a" * 306), "$0.029", "306 = 2 x 153: 2"),
    (MESSAGES, text("a" * 307), "$0.0435", "307 = 2 x 153 + 1: 3"),
    (MESSAGES, text("a" * 459), "$0.0435", "459 = 3 x 153: 3"),
    (MESSAGES, text("a" * 460), "$0.058", "460 = 3 x 153 + 1: 4"),
    (MESSAGES, text("a" * 1600), "$0.1595", "1,600 = 10 x 153 + 70: 11"),
    (MESSAGES, text("é" * 160), "$0.0145", "é is in GSM-7: 1"),
    (MESSAGES, text("ç" + "a" * 70), "$0.029", "ç is not, Ç is: 71 in UCS-2: 2"),
    (MESSAGES, text("Ç" + "a" * 159), "$0.0145", "Ç is in GSM-7: 1"),
    (MESSAGES, text("`" + "a" * 70), "$0.029", "a backtick is not: 71 in UCS-2: 2"),
    (MESSAGES, text("€" + "a" * 158), "$0.0145", "a euro takes 2: 160: 1"),
    (MESSAGES, text("€" + "a" * 159), "$0.029", "a euro takes 2: 161: 2"),
    (MESSAGES, text("€" * 80), "$0.0145", "80 x 2 = 160: 1"),
    (MESSAGES, text("€" * 81), "$0.029", "81 x 2 = 162; 76 fit in the first part: 2"),
    (MESSAGES, text("€" * 152), "$0.029", "76 + 76, a place left over in each: 2"),
    (MESSAGES, text("€" * 153), "$0.0435", "76 + 76 + 1, though 306 places would be enough: 3"),
    (MESSAGES, text("a" * 152 + "€" + "a" * 10), "$0.029", "the euro goes to the second part: 2"),
    (MESSAGES, text("a" * 152 + "€" + "a" * 151), "$0.029", "152, then 2 + 151 = 153: 2"),
    (MESSAGES, text("a" * 152 + "€" + "a" * 152), "$0.0435", "152, then 2 + 151, then 1: 3"),
    (MESSAGES, text("^{}\\[~]|" * 10), "$0.0145", "80 x 2 = 160: 1"),
    (MESSAGES, text("^{}\\[~]|" * 10 + "a"), "$0.029", "161: 2"),
    (MESSAGES, text("я" * 70), "$0.0145", "70 in UCS-2: 1"),
    (MESSAGES, text("я" * 71), "$0.029", "71 = 67 + 4: 2"),
    (MESSAGES, text("я" * 134), "$0.029", "134 = 2 x 67: 2"),
    (MESSAGES, text("я" * 135), "$0.0435", "135 = 2 x 67 + 1: 3"),
    (MESSAGES, text("😀" * 35), "$0.0145", "an emoji takes 2: 70: 1"),
    (MESSAGES, text("😀" * 36), "$0.029", "72; 33 fit in the first part: 2"),
    (MESSAGES, text("😀" * 66), "$0.029", "33 + 33: 2"),
    (MESSAGES, text("😀" * 67), "$0.0435", "33 + 33 + 1, though 134 places would be enough: 3"),
    (MESSAGES, text("a" * 68 + "😀"), "$0.0145", "68 + 2 = 70: 1"),
    (MESSAGES, text("a" * 69 + "😀"), "$0.029", "69 + 2 = 71: 2"),
    (MESSAGES, text("a" * 66 + "😀" + "a" * 10), "$0.029", "the emoji goes to the second part: 2"),
    (MESSAGES, text("“Hi”"), "$0.0145", "curly quotes make it UCS-2: 4: 1"),
    (MESSAGES, text("“" + "a" * 70), "$0.029", "71 in UCS-2: 2"),
    (MESSAGES, text("👨‍👩‍👧" * 8), "$0.0145", "three emoji and two joiners take 8; 64: 1"),
    (MESSAGES, text("👨‍👩‍👧" * 9), "$0.029", "72: 2"),
    (MESSAGES, text("line\nline\r\n" * 10), "$0.0145", "11 x 10 = 110 in GSM-7: 1"),
    (MESSAGES, text(""), "$0.0145", "an empty text takes one: 1"),
    # Where it goes.
    (MESSAGES, text("Hello", GB), "$0.06", "1 x 0.06"),
    (MESSAGES, text("a" * 161, GB), "$0.12", "2 x 0.06"),
    (MESSAGES, text("я" * 71, GB), "$0.12", "2 x 0.06"),
    (MESSAGES, text("Hello", DE), "$1", "not in the table: 1 x 1"),
    (MESSAGES, text("a" * 161, DE), "$2", "2 x 1"),
    (MESSAGES, text("Hello", "%2B88213300"), "$1", "a satellite's"),
    (MESSAGES, text("Hello", "%2B19005550100"), "$1", "a premium number is nobody's"),
    (MESSAGES, text("Hello", "14155550100"), "$1", "without its plus, nobody's number"),
    (MESSAGES, text("Hello", "12345"), "$1", "a short code"),
    # Files: the dearer of 0.0355 and a segment, each.
    (MESSAGES, f"To={US}&From=%2B14155550111" + MEDIA, "$0.0355", "1 file"),
    (MESSAGES, f"To={US}&From=%2B14155550111" + MEDIA * 3, "$0.1065", "3 x 0.0355"),
    (MESSAGES, text("Hello") + MEDIA, "$0.05", "0.0145 + 0.0355"),
    (MESSAGES, text("a" * 161) + MEDIA * 2, "$0.1", "2 x 0.0145 + 2 x 0.0355"),
    (MESSAGES, text("Hello", GB) + MEDIA, "$0.12", "0.06 + 0.06: a phone without MMS gets a link"),
    (MESSAGES, text("Hello", DE) + MEDIA, "$2", "1 + 1"),
    # What the request does not tell.
    (MESSAGES, f"To={US}&MessagingServiceSid=MG1", "amount_unknown", "it states no Body"),
    (MESSAGES, "From=%2B14155550111&Body=Hi", "amount_unknown", "it states no To"),
    (MESSAGES, text("Hi") + "&ContentSid=HX1", "amount_unknown", "ContentSid"),
    (MESSAGES, text("Hi") + "&SendAsMms=true", "amount_unknown", "SendAsMms"),
    (MESSAGES, text("Hi") + "&ShortenUrls=true", "amount_unknown", "ShortenUrls"),
    (MESSAGES + "?ContentSid=HX1", text("Hi"), "amount_unknown", "ContentSid"),
    (MESSAGES, text("Hi", "whatsapp:" + US), "amount_unknown", "another channel"),
    (MESSAGES, text("Hi") + f"&To={DE}", "ambiguous_request", "To can be read in more than one way"),
    (MESSAGES, text("Hi") + "&body=Longer", "ambiguous_request", "Body can be read"),
    (MESSAGES + f"?To={DE}", text("Hi"), "ambiguous_request", "To stands in the query"),
    # Calls: 0.014 a minute, 0.09 in Alaska, 10 elsewhere.
    (CALLS, f"To={US}&From={US}&TimeLimit=60&Twiml=%3CResponse%2F%3E", "$0.014", "1 minute"),
    (CALLS, f"To={US}&From={US}&TimeLimit=61&Twiml=%3CResponse%2F%3E", "$0.028", "2 begun"),
    (CALLS, f"To={US}&From={US}&TimeLimit=600&Twiml=%3CResponse%2F%3E", "$0.14", "10 minutes"),
    (CALLS, f"To=%2B19074441234&From={US}&TimeLimit=60&Twiml=%3CResponse%2F%3E", "$0.09", "Alaska"),
    (CALLS, f"To={DE}&From={US}&TimeLimit=120&Twiml=%3CResponse%2F%3E", "$20", "2 x 10"),
    (CALLS, f"To={US}&From={US}&TimeLimit=0&Twiml=%3CResponse%2F%3E", "amount_unknown", "TimeLimit is zero"),
    (CALLS, f"To={US}&From={US}&TimeLimit=1e3&Twiml=%3CResponse%2F%3E", "amount_unknown", "TimeLimit"),
    (CALLS, f"To=sip%3Aa%40b.test&From={US}&TimeLimit=60&Twiml=%3CResponse%2F%3E", "amount_unknown", "sip"),
    (
        CALLS,
        f"To={US}&From={US}&TimeLimit=60&Record=true&Twiml=%3CResponse%2F%3E",
        "amount_unknown",
        "Record",
    ),
    (CALLS, f"To={US}&From={US}&TimeLimit=60&MachineDetection=Enable", "amount_unknown", "MachineDetection"),
    (CALLS, f"To={US}&From={US}&Twiml=%3CResponse%2F%3E", "$0.84", "no TimeLimit: 60 minutes are written in"),
    (CALLS, f"To={US}&From={US}&TimeLimit=14400&Twiml=%3CResponse%2F%3E", "$3.36", "240 minutes"),
    (CALLS, f"To={US}&TimeLimit=14401", "amount_unknown", "TimeLimit is more than 14400 seconds"),
    (CALLS, f"To={US}&TimeLimit=60&Url=https%3A%2F%2Fa.test", "amount_unknown", "may dial further calls"),
    (CALLS, f"To={US}&ApplicationSid=AP1", "amount_unknown", "may dial further calls"),
    (CALLS, f"To={US}&TimeLimit=60&Twiml={DIAL}", "amount_unknown", "its Twiml holds Dial"),
    (CALLS.replace(".json", "/CA1.json"), "Status=completed", "$0", "hanging up"),
    (CALLS.replace(".json", "/CA1.json"), f"Twiml={DIAL}", "amount_unknown", "its Twiml holds Dial"),
    (MESSAGES, text("Hello") + "&MaxPrice=0.001", "$0.0145", "a stated MaxPrice lowers no hold"),
    (MESSAGES, text("Hello") + "&MaxPrice=1&maxprice=9", "ambiguous_request", "MaxPrice can be read"),
    # Other hosts.
    ("POST /verify/v2/Services/VA1/Verifications", f"To={US}&Channel=sms", "$0.0145", "a message"),
    ("POST /verify/v2/Services/VA1/Verifications", f"To={GB}&Channel=sms", "$0.06", "a message"),
    ("POST /verify/v2/Services/VA1/Verifications", "To=a%40b.test&Channel=email", "$1", "no number: dearest"),
    ("POST /verify.twilio.com/v2/Services/VA1/VerificationCheck", "Code=1", "$0.05", "where it succeeds"),
    ("GET /lookups/v2/PhoneNumbers/%2B14155550100", "", "$0", "formatting is free"),
    ("GET /lookups/v2/PhoneNumbers/%2B14155550100?Fields=caller_name", "", "amount_unknown", "Fields"),
    ("POST /v2/Services/VA1/Verifications", f"To={US}", "ambiguous_request", "host"),
    ("POST /studio/v2/Flows/FW1/Executions", f"To={US}", "amount_unknown", ""),
    (
        "POST /2010-04-01/Accounts/AC00000000000000000000000000000000/IncomingPhoneNumbers.json",
        f"PhoneNumber={US}",
        "amount_unknown",
        "every month",
    ),
    (
        "GET /2010-04-01/Accounts/AC00000000000000000000000000000000/Messages.json?To=%2B14155550100",
        "",
        "$0",
        "a read",
    ),
]

# --- Resend: $0.0009 for each recipient -----------------------------------------------------------------

MAIL = "POST /emails"
BATCH = "POST /emails/batch"
FROM = '"from": "me@acme.test", "subject": "Hi", "text": "Hello"'


def to(*recipients: str) -> str:
    return f'{{{FROM}, "to": {json.dumps(recipients)}}}'


RESEND = [
    (MAIL, f'{{{FROM}, "to": "a@b.test"}}', "$0.0009", "1"),
    (MAIL, to("a@b.test"), "$0.0009", "1"),
    (MAIL, to("a@b.test", "c@d.test"), "$0.0018", "2"),
    (MAIL, to("a@b.test", "a@b.test"), "$0.0018", "the same twice counts twice"),
    (MAIL, to("Ann <a@b.test>"), "$0.0009", "1, with a name"),
    (MAIL, to(*["a@b.test"] * 50), "$0.045", "50, as many as may be"),
    (MAIL, f'{{{FROM}, "to": "a@b.test", "cc": "c@b.test"}}', "$0.0018", "1 + 1"),
    (
        MAIL,
        f'{{{FROM}, "to": "a@b.test", "cc": "c@b.test", "bcc": ["d@b.test", "e@b.test"]}}',
        "$0.0036",
        "4",
    ),
    (MAIL, f'{{{FROM}, "to": ["a@b.test"], "cc": [], "bcc": []}}', "$0.0009", "empty lists are nobody"),
    (MAIL, f'{{{FROM}, "to": ["a@b.test"], "cc": null}}', "$0.0009", "null is nobody"),
    (BATCH, f"[{to('a@b.test')}, {to('c@d.test', 'e@f.test')}]", "$0.0027", "1 + 2"),
    (BATCH, "[" + ", ".join([to("a@b.test")] * 100) + "]", "$0.09", "100 mails"),
    (MAIL, to("a@b.test, c@d.test"), "amount_unknown", "not one address"),
    (MAIL, to("a@b.test; c"), "amount_unknown", "not one address"),
    (MAIL, to("nobody"), "amount_unknown", "not one address"),
    (MAIL, to(*["a@b.test"] * 51), "amount_unknown", "more than 50 recipients"),
    (MAIL, to(), "amount_unknown", "it states no to"),
    (MAIL, "{}", "amount_unknown", "it states no to"),
    (MAIL, "[]", "malformed_request", ""),
    (MAIL, '{"to": "a@b.test"', "malformed_request", ""),
    (MAIL, '{"to": "a@b.test", "to": ["c@d.test", "e@f.test"]}', "malformed_request", ""),
    (MAIL, '{"to": "a@b.test", "To": ["c@d.test", "e@f.test"]}', "ambiguous_request", "to"),
    (MAIL, '{"to": {"email": "a@b.test"}}', "ambiguous_request", "to"),
    (BATCH, "[]", "amount_unknown", "it holds no mail"),
    (BATCH, f'[{to("a@b.test")}, {{"subject": "x"}}]', "amount_unknown", "it states no to"),
    ("POST /broadcasts/b_1/send", "{}", "amount_unknown", "every contact"),
    ("POST /events/send", '{"event": "x"}', "amount_unknown", "automations"),
    ("POST /contacts", '{"email": "a@b.test"}', "amount_unknown", "no vendor file lists it"),
    ("GET /emails/m_1", "{}", "$0", "a read"),
    ("POST /emails/m_1/cancel", "", "$0", "moves no money"),
]

# --- language models: bytes x the dearest input + the maximum written x output, per million -------------


def body_of(size: int, **members: object) -> str:
    """A body of that many bytes: its prompt is as long as it takes."""
    bare = json.dumps({**members, "messages": [{"role": "user", "content": ""}]})
    padded = {**members, "messages": [{"role": "user", "content": "x" * (size - len(bare))}]}
    made = json.dumps(padded)
    assert len(made) == size
    return made


def plain(size: int, **members: object) -> str:
    """The same at the price of the list, whatever the project is set to."""
    return body_of(size, **members, service_tier="default")


CHAT = "POST /v1/chat/completions"
OPENAI = [
    # gpt-4o-mini: 0.15 in, 0.60 out. A project may be set to priority: x 2.5, but for the default tier.
    (CHAT, plain(1000, model="gpt-4o-mini", max_tokens=100), "$0.00021", "0.00015 + 0.00006"),
    (CHAT, plain(1000, model="gpt-4o-mini", max_completion_tokens=100), "$0.00021", "by its new name"),
    (CHAT, plain(1000, model="gpt-4o-mini", max_tokens=100, n=3), "$0.00033", "0.00015 + 3 x 0.00006"),
    (CHAT, plain(200_000, model="gpt-4o-mini", max_tokens=1), "$0.0300006", "0.03 + 0.0000006"),
    (CHAT, plain(500, model="gpt-4o-mini", max_tokens=100, stream=True), "$0.000135", "0.000075 + 0.00006"),
    (CHAT, body_of(1000, model="gpt-4o-mini", max_tokens=100), "$0.000525", "0.00021 x 2.5"),
    (CHAT, body_of(1000, model="gpt-4o-mini", max_tokens=100, service_tier="auto"), "$0.000525", "the same"),
    (
        CHAT,
        body_of(1000, model="gpt-4o", max_tokens=9, service_tier="priority"),
        "amount_unknown",
        "service_tier",
    ),
    # gpt-4o: 2.50 in, 10 out. gpt-5: 1.25 in, 10 out.
    (CHAT, plain(1000, model="gpt-4o", max_tokens=1000), "$0.0125", "0.0025 + 0.01"),
    (CHAT, plain(2000, model="gpt-5", max_completion_tokens=4096), "$0.04346", "0.0025 + 0.04096"),
    (
        "POST /v1/responses",
        '{"model": "gpt-5", "input": "Hello", "max_output_tokens": 16}',
        "$0.000590625",
        "61 x 0.00000125 = 0.00007625, and 16 x 0.00001 = 0.00016; x 2.5",
    ),
    (
        "POST /v1/embeddings",
        '{"model": "text-embedding-3-small", "input": "Hello, world"}',
        "$0.0000012",
        "60 x 0.00000002",
    ),
    (CHAT, body_of(1000, model="gpt-4o-mini"), "amount_unknown", "no maximum of output tokens"),
    (CHAT, body_of(1000, model="no-such-model", max_tokens=9), "amount_unknown", "no price for the model"),
    (CHAT, body_of(1000, max_tokens=9), "amount_unknown", "it names no model"),
    (CHAT, body_of(1000, model="gpt-4o-mini", max_tokens=1.5), "amount_unknown", "not a plain count"),
    (CHAT, body_of(1000, model="gpt-4o-mini", max_tokens=0), "amount_unknown", "not a plain count"),
    (CHAT, body_of(1000, model="gpt-4o-mini", max_tokens=9, whatever=1), "amount_unknown", "whatever"),
    (CHAT, body_of(1000, model="gpt-4o-search-preview", max_tokens=9), "amount_unknown", "search"),
    (
        CHAT,
        '{"model": "gpt-4o-mini", "max_tokens": 9, "max_tokens": 99, "messages": []}',
        "malformed_request",
        "",
    ),
    ("POST /v1/images/generations", '{"prompt": "a cat"}', "amount_unknown", "size and quality"),
    ("POST /v1/batches", "{}", "amount_unknown", "in a file"),
    ("GET /v1/models", "", "$0", "a read"),
]

SAY = "POST /v1/messages"
ANTHROPIC = [
    # claude-haiku-4-5: kept for an hour, input is dearest: 2; 5 out. Work kept in one country: x 1.1.
    (SAY, body_of(1000, model="claude-haiku-4-5", max_tokens=100), "$0.00275", "(0.002 + 0.0005) x 1.1"),
    (
        SAY,
        body_of(1000, model="claude-haiku-4-5", max_tokens=100, inference_geo="global"),
        "$0.0025",
        "0.002 + 0.0005",
    ),
    # claude-sonnet-4-5: 3 and 15 up to 200,000 tokens of input, 6 and 22.5 above; kept for an hour, 6 and 12.
    # Which tier it will be nobody knows before: the dearest is held.
    (
        SAY,
        body_of(1000, model="claude-sonnet-4-5", max_tokens=1000, inference_geo="global"),
        "$0.0345",
        "0.012 + 0.0225",
    ),
    (
        SAY,
        body_of(200_000, model="claude-sonnet-4-5", max_tokens=1000, inference_geo="global"),
        "$2.4225",
        "2.4 + 0.0225",
    ),
    (
        SAY,
        body_of(400_000, model="claude-sonnet-4-5", max_tokens=8192, inference_geo="global"),
        "$4.98432",
        "4.8 + 0.18432",
    ),
    # claude-opus-4-1: kept for an hour 30; 75 out.
    (
        SAY,
        body_of(1000, model="claude-opus-4-1", max_tokens=100, inference_geo="global"),
        "$0.0375",
        "0.03 + 0.0075",
    ),
    (SAY, body_of(1000, model="claude-haiku-4-5"), "amount_unknown", "no maximum of output tokens"),
    (SAY, body_of(1000, model="claudette", max_tokens=9), "amount_unknown", "no price for the model"),
    (
        SAY,
        body_of(1000, model="claude-haiku-4-5", max_tokens=9, container="c_1"),
        "amount_unknown",
        "container",
    ),
    ("GET /v1/models", "", "$0", "a read"),
]

TABLE = [
    Row(vendor, *line)
    for vendor, lines in {
        "stripe": STRIPE,
        "twilio": TWILIO,
        "resend": RESEND,
        "openai": OPENAI,
        "anthropic": ANTHROPIC,
    }.items()
    for line in lines
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.vendor}: {row.request[:60]}: {row.why}")
def test_a_request_costs_what_the_table_says(row: Row) -> None:
    """To the nano-dollar; or it is refused, and says why."""
    (vendor,) = (vendor for vendor in VENDORS if vendor.name == row.vendor)
    method, _, target = row.request.partition(" ")
    try:
        _, verdict = attempt(vendor, f"{method} /{row.vendor}{target}", row.body, RATES)
    except (FormError, DocumentError):
        verdict = Refusal(Code.MALFORMED_REQUEST, "the body can't be read")
    if row.outcome.startswith("$"):
        assert isinstance(verdict, Permit), verdict.sentence
        assert usd_from_nano(verdict.attempt.hold.nano) == Decimal(row.outcome[1:])
    else:
        assert isinstance(verdict, Refusal), verdict.price
        assert verdict.code == row.outcome, verdict.sentence
        assert row.why in verdict.sentence


def test_the_table_has_the_rows_that_it_promises() -> None:
    """150 at least, each once; every vendor both prices and refuses; all currencies with 0 or 3 decimals."""
    assert len({row[:3] for row in TABLE}) == len(TABLE) >= ROWS_AT_LEAST
    for vendor in ("stripe", "twilio", "resend", "openai", "anthropic"):
        outcomes = [row.outcome for row in TABLE if row.vendor == vendor]
        assert "amount_unknown" in outcomes
        assert any(outcome.startswith("$0.0") for outcome in outcomes)
    odd = "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF UGX VND VUV XAF XOF XPF BHD JOD KWD OMR TND ISK HUF TWD"
    priced = {row.body.rpartition("currency=")[2].upper() for row in TABLE if row.outcome[0] == "$"}
    assert set(odd.split()) <= priced


# --- what is spent once the answer tells -----------------------------------------------------------------

USAGE: list[tuple[str, TokenApi, str, dict[str, int], str, str]] = [
    (
        "openai",
        "openai-chat",
        "gpt-4o-mini",
        {"prompt_tokens": 1000, "completion_tokens": 100},
        "0.00021",
        "0.00015 + 0.00006",
    ),
    (
        "anthropic",
        "anthropic",
        "claude-sonnet-4-5",
        {"input_tokens": 200_000, "output_tokens": 1000},
        "0.615",
        "the last of the lower tier: 200,000 x 3 + 1,000 x 15, per million",
    ),
    (
        "anthropic",
        "anthropic",
        "claude-sonnet-4-5",
        {"input_tokens": 200_001, "output_tokens": 1000},
        "1.222506",
        "the first of the upper: 200,001 x 6 + 1,000 x 22.5, per million",
    ),
    (
        "anthropic",
        "anthropic",
        "claude-sonnet-4-5",
        {"input_tokens": 1, "cache_read_input_tokens": 200_000, "output_tokens": 1000},
        "0.142506",
        "cached input counts for the tier: 1 x 6 + 200,000 x 0.6 + 1,000 x 22.5, per million",
    ),
    (
        "anthropic",
        "anthropic",
        "claude-sonnet-4-5",
        {"input_tokens": 100, "cache_creation_input_tokens": 1000, "output_tokens": 10},
        "0.00645",
        "kept for nobody says how long: 100 x 3 + 1,000 x 6 + 10 x 15, per million",
    ),
]


@pytest.mark.parametrize(("vendor", "api", "model", "usage", "usd", "how"), USAGE)
def test_an_answer_is_spent_at_its_tier(
    vendor: str, api: TokenApi, model: str, usage: dict[str, int], usd: str, how: str
) -> None:
    """The dearest was held; the truth is spent."""
    (file,) = (each for each in VENDORS if each.name == vendor)
    price = PRICES.find(file, model)
    assert price is not None
    assert how
    nano = spent(api, price, {"usage": usage})
    assert nano is not None
    assert Decimal(nano) / NANO_PER_USD == Decimal(usd)
