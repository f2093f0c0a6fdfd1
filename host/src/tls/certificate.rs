//! Certificates and keys in files, and what can be wrong with them.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64ct::{Base64, Encoding as _};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::{PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use zeroize::{Zeroize as _, Zeroizing};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// A certificate with its chain and key.
#[derive(Debug)]
pub struct Identity {
    /// For rustls.
    pub key: CertifiedKey,
    /// Names of the certificate in lower case; `*.` stands for one label.
    pub names: Vec<Box<str>>,
    /// Its period of validity.
    pub validity: Validity,
}

/// Period of validity of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    not_before: Duration,
    not_after: Duration,
}

/// A fault of one of the two files.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The certificate file.
    Certificate(String),
    /// The key file.
    Key(String),
}

impl Identity {
    /// Reads a chain, the server's own certificate first, and its key, both PEM.
    ///
    /// # Errors
    /// Which of them is wrong.
    pub fn parse(chain: &[u8], key: &[u8]) -> Result<Self, Wrong> {
        let chain = certificates(chain).map_err(Wrong::Certificate)?;
        let (names, validity) = inspect(&chain[0]).map_err(Wrong::Certificate)?;
        let mut key = private_key(key).map_err(Wrong::Key)?;
        // By reference, so that no copy is left but the library's own.
        let signer = any_supported_type(&key);
        key.zeroize();
        let signer = signer.map_err(|_| {
            Wrong::Key(
                "holds a key of a kind that is not supported (RSA from 2048 bits, ECDSA P-256, P-384 and P-521, Ed25519 \
                 are)"
                    .into(),
            )
        })?;
        let key = CertifiedKey::new(chain, signer);
        // rustls' own comparison takes no certificates of X.509 version 1. A key that does not say its public half is left to
        // the handshake.
        if let (Some(own), Some(certified)) = (key.key.public_key(), public_key(&key.cert[0]))
            && own != certified
        {
            let right = "the first certificate of the file has to be the key's own";
            return Err(Wrong::Key(format!("does not belong to the certificate ({right})")));
        }
        Ok(Self { key, names, validity })
    }
}

/// Facts of a certificate, as they are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateFacts {
    /// [`Identity::names`].
    pub names: Vec<Box<str>>,
    /// When it begins to be valid, since 1970.
    pub not_before: Duration,
    /// When it ends to be valid, since 1970.
    pub not_after: Duration,
}

impl CertificateFacts {
    pub(super) fn of(identity: &Identity) -> Self {
        let Validity { not_before, not_after } = identity.validity;
        Self { names: identity.names.clone(), not_before, not_after }
    }
}

impl Validity {
    fn of(certificate: &Certificate) -> Self {
        let validity = &certificate.tbs_certificate.validity;
        Self {
            not_before: validity.not_before.to_unix_duration(),
            not_after: validity.not_after.to_unix_duration(),
        }
    }

    /// Why the certificate is not valid now, if so.
    pub fn trouble(self, now: SystemTime) -> Option<String> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let date = |at: Duration| httpdate::fmt_http_date(UNIX_EPOCH + at);
        if now > self.not_after {
            return Some(format!("has expired, on {}", date(self.not_after)));
        }
        (now < self.not_before).then(|| format!("is not valid before {}", date(self.not_before)))
    }
}

/// Warnings about certificates that can be used all the same, a line for each; `is_chain` where each has to be
/// issued by the next. Of the first of a chain [`Identity::parse`] says all there is.
pub fn troubles(certificates: &[CertificateDer<'_>], is_chain: bool, now: SystemTime) -> Vec<String> {
    let mut troubles = Vec::new();
    let mut before: Option<Certificate> = None;
    for (i, der) in certificates.iter().enumerate() {
        let which = if certificates.len() == 1 { "".into() } else { format!("certificate {} ", i + 1) };
        let certificate = match Certificate::from_der(der) {
            Ok(certificate) => certificate,
            Err(e) => {
                // Clients that need it will say so; an issuer that is none is not asked.
                let then = if is_chain { "is sent as it is" } else { "is left out" };
                troubles.push(format!("{which}cannot be read, and {then}: {e}"));
                before = None;
                continue;
            }
        };
        let tbs = &certificate.tbs_certificate;
        let subject = format!("({})", tbs.subject);
        if let Some(trouble) = Validity::of(&certificate).trouble(now).filter(|_| !(is_chain && i == 0)) {
            troubles.push(format!("{which}{subject} {trouble}"));
        }
        if let Some(issued) = before.filter(|_| is_chain)
            && issued.tbs_certificate.issuer != tbs.subject
        {
            let issuer = &issued.tbs_certificate.issuer;
            troubles.push(format!(
                "{which}{subject} did not issue the one before it, of which the issuer is {issuer} (each is followed by its \
                 issuer's)"
            ));
        }
        before = Some(certificate);
    }
    troubles
}

/// All certificates of a PEM file; at least one.
///
/// # Errors
/// Its fault.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|e| format!("is not valid PEM: {e}"))?;
    if !found.is_empty() {
        return Ok(found);
    }
    let what = if contains(pem, b"PRIVATE KEY-----") {
        "holds a key and no certificate (are cert and key swapped?)"
    } else if pem.first() == Some(&0x30) {
        "is in DER form, but must be PEM (openssl x509 -inform der -in FILE)"
    } else {
        "holds no certificate (expected PEM with -----BEGIN CERTIFICATE-----)"
    };
    Err(what.into())
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    if contains(pem, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || contains(pem, b"Proc-Type: 4,ENCRYPTED") {
        return Err(
            "holds an encrypted key, which is not supported (decrypt it: openssl pkey -in FILE -out \
                    FILE)"
                .into(),
        );
    }
    if let Some(key) = plain_key(pem) {
        return Ok(key);
    }
    // For what is wrong with it, and forms that nobody writes any more.
    PrivateKeyDer::from_pem_slice(pem).map_err(|e| match e {
        rustls::pki_types::pem::Error::NoItemsFound => {
            "holds no private key (expected PEM with -----BEGIN PRIVATE KEY-----)".into()
        }
        e => format!("is not valid PEM: {e}"),
    })
}

/// The key of a file as all tools write it. The library that knows all forms leaves a copy of the text behind.
fn plain_key(pem: &[u8]) -> Option<PrivateKeyDer<'static>> {
    type KeyForm = fn(Vec<u8>) -> PrivateKeyDer<'static>;
    let forms: [(&str, KeyForm); 3] = [
        ("PRIVATE KEY", |der| PrivateKeyDer::Pkcs8(der.into())),
        ("RSA PRIVATE KEY", |der| PrivateKeyDer::Pkcs1(der.into())),
        ("EC PRIVATE KEY", |der| PrivateKeyDer::Sec1(der.into())),
    ];
    let bodies = forms.iter().filter_map(|(name, key)| {
        let (begin, end) = (format!("-----BEGIN {name}-----"), format!("-----END {name}-----"));
        let at = memchr::memmem::find(pem, begin.as_bytes())?;
        let body = &pem[at + begin.len()..];
        Some((at, &body[..memchr::memmem::find(body, end.as_bytes())?], key))
    });
    // The first of them, as the library takes it.
    let (_, body, key) = bodies.min_by_key(|(at, ..)| *at)?;
    let mut text = Zeroizing::new(Vec::with_capacity(body.len()));
    text.extend(body.iter().filter(|byte| !byte.is_ascii_whitespace()));
    let mut der = Zeroizing::new(vec![0; text.len() / 4 * 3]);
    let n_bytes = Base64::decode(&**text, &mut der).ok()?.len();
    // Cut where it is: what is dropped of it is not part of the key.
    der.truncate(n_bytes);
    Some(key(std::mem::take(&mut *der)))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}

fn inspect(certificate: &CertificateDer<'_>) -> Result<(Vec<Box<str>>, Validity), String> {
    let certificate = Certificate::from_der(certificate)
        .map_err(|e| format!("holds a certificate that cannot be read: {e}"))?;
    let validity = Validity::of(&certificate);
    let certificate = certificate.tbs_certificate;
    let alternatives = certificate
        .get::<SubjectAltName>()
        .map_err(|e| format!("holds a certificate whose names cannot be read: {e}"))?;
    let mut names: Vec<Box<str>> = Vec::new();
    for name in alternatives.into_iter().flat_map(|(_, names)| names.0) {
        if let GeneralName::DnsName(name) = name {
            names.push(name.as_str().to_ascii_lowercase().into());
        }
    }
    if names.is_empty() {
        // As it was before 2000; clients do not look at it any more, but it says which host was meant.
        let attributes = certificate.subject.0.iter().flat_map(|set| set.0.iter());
        for attribute in attributes.filter(|attribute| attribute.oid == COMMON_NAME) {
            let value = &attribute.value;
            let text = Utf8StringRef::try_from(value)
                .map(|text| text.as_str().to_owned())
                .or_else(|_| PrintableStringRef::try_from(value).map(|text| text.as_str().to_owned()));
            names.extend(text.ok().map(|text| text.to_ascii_lowercase().into()));
        }
    }
    Ok((names, validity))
}

/// The public key of a certificate of any version (SubjectPublicKeyInfo), or nothing where it is no certificate. Looks at
/// nothing else, so that peers' odd certificates are taken where they need not be verified.
pub fn public_key<'a>(certificate: &'a CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'a>> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE { … } … } (RFC 5280 section 4.1)
    let certificate = Element::first(certificate).filter(|certificate| certificate.tag == SEQUENCE)?;
    let tbs = Element::first(certificate.content).filter(|tbs| tbs.tag == SEQUENCE)?;
    let mut fields = tbs.content;
    if fields.first() == Some(&VERSION) {
        fields = Element::first(fields)?.after;
    }
    // serialNumber, signature, issuer, validity, subject
    for _ in 0..5 {
        fields = Element::first(fields)?.after;
    }
    let key = Element::first(fields)?;
    (key.tag == SEQUENCE).then(|| key.whole.into())
}

/// The key itself, as algorithms take it, of one that is for this algorithm.
pub fn key_bits<'a>(key: &'a SubjectPublicKeyInfoDer<'_>, algorithm: &[u8]) -> Option<&'a [u8]> {
    // SubjectPublicKeyInfo ::= SEQUENCE { algorithm SEQUENCE { … }, subjectPublicKey BIT STRING }
    let found = Element::first(Element::first(key.as_ref())?.content)?;
    let bits = Element::first(found.after)?.content;
    // The first byte says how many bits of the last are unused: none.
    bits.strip_prefix(&[0]).filter(|_| found.content == algorithm)
}

/// One element of some DER.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
    /// The bytes that follow it.
    after: &'a [u8],
}

impl<'a> Element<'a> {
    fn first(der: &'a [u8]) -> Option<Self> {
        let (&tag, rest) = der.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (len, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // Lengths of up to four bytes, as many as any certificate needs.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, after) = rest.split_at_checked(len)?;
        Some(Self { tag, content, whole: &der[..der.len() - after.len()], after })
    }
}

/// Header lines that tell servers whose certificate a client has shown: its subject as RFC 4514 writes it, and the
/// SHA-256 of the whole.
pub fn identity_lines(certificate: &CertificateDer<'_>) -> Vec<u8> {
    let mut lines = String::from("X-Client-Cert-Subject: ");
    if let Ok(parsed) = Certificate::from_der(certificate) {
        for byte in parsed.tbs_certificate.subject.to_string().bytes() {
            match byte {
                b' '..=b'~' => lines.push(char::from(byte)),
                // As RFC 4514 escapes bytes: nothing that a client chose may end the line. Writing to a string cannot fail.
                _ => _ = write!(lines, "\\{byte:02X}"),
            }
        }
    }
    lines.push_str("\r\nX-Client-Cert-Fingerprint: ");
    for byte in Sha256::digest(certificate) {
        let _ = write!(lines, "{byte:02x}");
    }
    lines.push_str("\r\n");
    lines.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_the_library_reads_them() {
        let made = rcgen::generate_simple_self_signed(["site.test".to_owned()]).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let windows = key.replace('\n', "\r\n");
        let both = format!("{chain}{key}{chain}");
        let with_parameters =
            format!("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{key}");
        for text in [&key, &windows, &both, &with_parameters] {
            let by_library = PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap();
            assert_eq!(plain_key(text.as_bytes()).as_ref(), Some(&by_library), "{text}");
            Identity::parse(chain.as_bytes(), text.as_bytes()).unwrap();
        }
        for text in [&key[..60], "", &chain, &key.replace("-----END", "----END"), &key.replacen('M', "*", 2)]
        {
            assert!(plain_key(text.as_bytes()).is_none(), "{text}");
        }
    }
}
