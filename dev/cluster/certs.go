package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"
)

// credentials are what the control plane and its clients prove themselves with.
// They live as long as the control plane and never leave its directory.
type credentials struct {
	ca                      []byte // what clients check the API server with
	servingCert, servingKey []byte
	serviceAccountKey       []byte // signs the tokens of service accounts
	adminToken              string
	controllerToken         string
	kubeletToken            string
	schedulerToken          string
	proxyToken              string
}

func newCredentials(node string) (*credentials, error) {
	caKey, _, err := newKey()
	if err != nil {
		return nil, err
	}
	ca := certificate("dev cluster CA")
	ca.IsCA = true
	ca.BasicConstraintsValid = true
	ca.KeyUsage = x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, err
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	serving := certificate("kube-apiserver")
	serving.KeyUsage = x509.KeyUsageDigitalSignature
	serving.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	serving.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(serviceIP)}
	if node != "" {
		serving.IPAddresses = append(serving.IPAddresses, net.ParseIP(node))
	}
	serving.DNSNames = []string{"localhost", "kubernetes.default.svc"}
	servingDER, err := x509.CreateCertificate(rand.Reader, serving, ca, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	_, serviceAccountKey, err := newKey()
	if err != nil {
		return nil, err
	}
	return &credentials{
		ca:                pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}),
		servingCert:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: servingDER}),
		servingKey:        keyPEM,
		serviceAccountKey: serviceAccountKey,
		adminToken:        rand.Text(),
		controllerToken:   rand.Text(),
		kubeletToken:      rand.Text(),
		schedulerToken:    rand.Text(),
		proxyToken:        rand.Text(),
	}, nil
}

// certificate is valid for a year, and since yesterday for clocks that were set
// back.
func certificate(name string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.AddDate(0, 0, -1),
		NotAfter:     now.AddDate(1, 0, 0),
	}
}

func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}
