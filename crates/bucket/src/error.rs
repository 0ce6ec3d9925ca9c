//! What an object store says when it refuses, in words of who has to do something about it.

use api::objects::ObjectError;
use http::StatusCode;

pub fn none() -> ObjectError {
    error(
        "the cluster has no bucket",
        "`flynn-host bucket set` gives it one",
    )
}

pub fn of_another_cluster() -> ObjectError {
    error(
        "this bucket is used by another cluster",
        "choose another prefix: s3://BUCKET/PREFIX",
    )
}

pub fn no_bucket() -> ObjectError {
    error(
        "the object store has no bucket of this name",
        "make it there first, or check its name and the endpoint",
    )
}

pub fn bad_endpoint(endpoint: &str) -> ObjectError {
    error(
        &format!("{endpoint:?} with this bucket is no address of an object store"),
        "give it as https://HOST or https://HOST:PORT; buckets with unusual names need the path style",
    )
}

pub fn unreachable(host: &str, why: &str) -> ObjectError {
    error(
        &format!("the object store at {host} cannot be reached: {why}"),
        "is it up, and is the endpoint right?",
    )
}

pub fn broke_off(host: &str, why: &str) -> ObjectError {
    error(
        &format!("the connection to the object store at {host} broke off: {why}"),
        "",
    )
}

pub fn bad_answer(why: &str) -> ObjectError {
    error(
        &format!("the object store answers what cannot be understood: {why}"),
        "is the endpoint one that speaks S3?",
    )
}

pub fn of_disk(what: &std::path::Path, why: &std::io::Error) -> ObjectError {
    error(&format!("cannot read {}: {why}", what.display()), "")
}

/// From an answer that is no success.
pub fn refused(status: StatusCode, body: &str) -> ObjectError {
    let code = tag(body, "Code").unwrap_or_default();
    let (message, hint) = match code {
        "InvalidAccessKeyId" => (
            "the object store does not know the access key".to_owned(),
            "check the access key's id; keys belong to one endpoint",
        ),
        "SignatureDoesNotMatch" => (
            "the object store does not accept the signature".to_owned(),
            "check the secret access key, and the region",
        ),
        "NoSuchBucket" => return no_bucket(),
        "AccessDenied" | "AllAccessDisabled" => (
            "the object store does not let this access key do what is needed".to_owned(),
            "it has to be allowed to list the bucket, and to read, write and delete objects in it",
        ),
        "AuthorizationHeaderMalformed"
        | "AuthorizationQueryParametersError"
        | "PermanentRedirect"
        | "IllegalLocationConstraintException" => (
            "the bucket is in another region".to_owned(),
            "give the bucket's own: --region",
        ),
        "RequestTimeTooSkewed" | "RequestExpired" => (
            "the object store's clock and this host's differ too much".to_owned(),
            "set the clock of this host",
        ),
        _ if status.is_redirection() => (
            "the bucket is at another place".to_owned(),
            "give its own region, or its endpoint",
        ),
        _ if status == StatusCode::FORBIDDEN || status == StatusCode::UNAUTHORIZED => (
            "the object store refuses the credentials".to_owned(),
            "check the access key, its secret, and what it is allowed to do",
        ),
        _ => {
            let told = tag(body, "Message").unwrap_or_default();
            let text = [&format!("the object store answers {status}"), code, told];
            let text: Vec<_> = text.into_iter().filter(|part| !part.is_empty()).collect();
            (text.join(": "), "")
        }
    };
    error(&message, hint)
}

pub fn is_no_such_key(status: StatusCode, body: &str) -> bool {
    status == StatusCode::NOT_FOUND && tag(body, "Code") != Some("NoSuchBucket")
}

/// The text of the first such element.
fn tag<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let begin = xml.find(&format!("<{name}>"))? + name.len() + 2;
    let end = xml[begin..].find('<')? + begin;
    Some(xml[begin..end].trim())
}

fn error(message: &str, hint: &str) -> ObjectError {
    ObjectError {
        message: message.to_owned(),
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, body: &str, expected: &str) {
        let error = refused(StatusCode::from_u16(status).unwrap(), body);
        assert_eq!(format!("{} / {}", error.message, error.hint), expected);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        check(
            404,
            "<?xml version=\"1.0\"?>\n<Error><Code>NoSuchBucket</Code><Message>x</Message></Error>",
            "the object store has no bucket of this name / make it there first, or check its name and the endpoint",
        );
        check(
            403,
            "<Error><Code>SignatureDoesNotMatch</Code></Error>",
            "the object store does not accept the signature / check the secret access key, and the region",
        );
        check(
            403,
            "",
            "the object store refuses the credentials / check the access key, its secret, and what it is allowed to do",
        );
        check(
            503,
            "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
            "the object store answers 503 Service Unavailable: SlowDown: Please reduce your request rate. / ",
        );
        check(502, "<html>", "the object store answers 502 Bad Gateway / ");
    }

    #[test]
    fn a_missing_bucket_is_no_missing_object() {
        let is_none = |body| is_no_such_key(StatusCode::NOT_FOUND, body);
        assert!(is_none("<Error><Code>NoSuchKey</Code></Error>"));
        assert!(is_none(""));
        assert!(!is_none("<Error><Code>NoSuchBucket</Code></Error>"));
    }
}
