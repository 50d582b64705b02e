"""The country that a phone number belongs to, for prices by country.

What must stay true: a number that is not plainly a country's own (not valid, of a satellite, at a premium
rate) has none, and so costs the dearest price. The library reads its metadata from files when it is first
asked; that is why this stands outside the core.
"""

import phonenumbers

_DEARER = frozenset(
    {
        phonenumbers.PhoneNumberType.PREMIUM_RATE,
        phonenumbers.PhoneNumberType.SHARED_COST,
        phonenumbers.PhoneNumberType.UNKNOWN,
    }
)


def country_of(number: str) -> str | None:
    """ISO 3166-1 alpha-2 of a number in E.164."""
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return None
    if phonenumbers.number_type(parsed) in _DEARER:
        return None
    region = phonenumbers.region_code_for_number(parsed)
    return region if region is not None and len(region) == 2 and region.isalpha() else None
