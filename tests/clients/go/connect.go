package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/types/known/anypb"

	listingsv1 "listings/tests/clients/gen/listings/v1"
	"listings/tests/clients/gen/listings/v1/listingsv1connect"
)

type connectClient struct {
	listingsv1connect.OrderServiceClient
}

func newConnect(options Options) Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if options.CA != "" {
		pem, err := os.ReadFile(options.CA)
		check(err)
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	var own []connecthttp.Option
	switch options.Protocol {
	case "grpc":
		own = append(own, connecthttp.WithGRPC())
		if options.CA == "" { // net/http speaks HTTP/2 in plain text when told to
			transport.Protocols = new(http.Protocols)
			transport.Protocols.SetUnencryptedHTTP2(true)
		}
	case "grpc-web":
		own = append(own, connecthttp.WithGRPCWeb())
	}
	httpClient := &http.Client{Transport: transport}
	client := connect.NewClient(
		connecthttp.NewTransport(httpClient, options.URL, own...), withToken(options.Token))
	return connectClient{listingsv1connect.NewOrderServiceClient(client)}
}

func (c connectClient) WatchOrderPayments(ctx context.Context, request *listingsv1.WatchOrderPaymentsRequest) (Stream, error) {
	stream, err := c.OrderServiceClient.WatchOrderPayments(ctx, request)
	return receiver{stream}, err
}

func (c connectClient) Failure(err error) *Error {
	failure := &Error{Code: uint32(connect.CodeOf(err)), Message: err.Error()}
	if found, ok := errors.AsType[*connect.Error](err); ok {
		failure.Message = found.Message()
		for _, detail := range found.Details() {
			value, err := connectproto.UnmarshalErrorDetail(detail)
			check(err)
			packed, err := anypb.New(value)
			check(err)
			failure.Details = append(failure.Details, encode(packed))
		}
	}
	return failure
}

type receiver struct {
	stream listingsv1connect.OrderServiceWatchOrderPaymentsClientStream
}

func (r receiver) Recv() (*listingsv1.WatchOrderPaymentsResponse, error) {
	return r.stream.Receive()
}

// withToken sends a bearer token with each call, if there is one.
func withToken(token string) connect.ClientInterceptor {
	return func(next connect.ClientFunc) connect.ClientFunc {
		return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
			if info, ok := connect.CallInfoForClientContext(ctx); ok && token != "" {
				info.RequestHeader().Set("Authorization", "Bearer "+token)
			}
			return next(ctx, spec)
		}
	}
}
