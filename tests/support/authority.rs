//! A certificate authority for tests.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::PathBuf;

use cortex::domain::ambient::{Ambient, System};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer};

use crate::support::Scratch;

/// Files that a certificate authority has made.
pub struct Authority {
    folder: Scratch,
    /// Its own certificate.
    pub pem: String,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    /// A new one, which nobody knows yet.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Of its own: a certificate whose issuer has its own name would be taken for one that signed itself.
        params.distinguished_name.push(DnType::CommonName, format!("authority {}", System.uuid()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let folder = Scratch::new();
        std::fs::write(folder.path().join("ca.pem"), &pem).unwrap();
        Self { folder, pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for this machine, and its key.
    pub fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        self.issue_for(name, &["127.0.0.1", "localhost"])
    }

    /// A certificate for these hosts, and its key.
    pub fn issue_for(&self, name: &str, hosts: &[&str]) -> (PathBuf, PathBuf) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params =
            CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>()).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        std::fs::write(&files.0, certificate.pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }

    /// A file of its folder; `ca.pem` is its own certificate.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
