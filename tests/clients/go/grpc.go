package main

import (
	"context"
	"strings"

	_ "google.golang.org/genproto/googleapis/rpc/errdetails" // the types of the details
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	listingsv1 "listings/tests/clients/gen/listings/v1"
)

type grpcClient struct {
	client listingsv1.OrderServiceClient
}

func newGRPC(options Options) Client {
	_, target, _ := strings.Cut(options.URL, "://")
	transport := insecure.NewCredentials()
	if options.CA != "" {
		var err error
		transport, err = credentials.NewClientTLSFromFile(options.CA, "")
		check(err)
	}
	dialOptions := []grpc.DialOption{grpc.WithTransportCredentials(transport)}
	if options.Token != "" {
		dialOptions = append(dialOptions, grpc.WithPerRPCCredentials(token(options.Token)))
	}
	if len(options.ServiceConfig) > 0 {
		dialOptions = append(dialOptions, grpc.WithDefaultServiceConfig(string(options.ServiceConfig)))
	}
	connection, err := grpc.NewClient(target, dialOptions...)
	check(err)
	return grpcClient{listingsv1.NewOrderServiceClient(connection)}
}

func (c grpcClient) UpdateOrderPayment(ctx context.Context, request *listingsv1.UpdateOrderPaymentRequest) (*listingsv1.UpdateOrderPaymentResponse, error) {
	return c.client.UpdateOrderPayment(ctx, request)
}

func (c grpcClient) GetOrder(ctx context.Context, request *listingsv1.GetOrderRequest) (*listingsv1.GetOrderResponse, error) {
	return c.client.GetOrder(ctx, request)
}

func (c grpcClient) ListOrders(ctx context.Context, request *listingsv1.ListOrdersRequest) (*listingsv1.ListOrdersResponse, error) {
	return c.client.ListOrders(ctx, request)
}

func (c grpcClient) WatchOrderPayments(ctx context.Context, request *listingsv1.WatchOrderPaymentsRequest) (Stream, error) {
	return c.client.WatchOrderPayments(ctx, request)
}

func (c grpcClient) Failure(err error) *Error {
	found := status.Convert(err)
	failure := &Error{Code: uint32(found.Code()), Message: found.Message()}
	for _, detail := range found.Proto().GetDetails() {
		failure.Details = append(failure.Details, encode(detail))
	}
	return failure
}

// token is a bearer token that goes with each call.
type token string

func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(t)}, nil
}

func (token) RequireTransportSecurity() bool { return true }
