-- What was refused is rare and asked for often; found without a look at all that was let through.
CREATE INDEX call_denied ON call (no) WHERE policy_check_result != 'allowed';
